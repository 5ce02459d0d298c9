"""What a row must be, by one schema for check, training and evaluation."""

import json

import pytest

from verl_omni.__main__ import main
from verl_omni.data.check import RowsError, load_rows
from verl_omni.data.row import ConversationRow, PromptRow, problems_of

GOOD = {
    "data_source": "demo",
    "prompt": [{"role": "user", "content": "<video><audio>Which emotion?"}],
    "videos": ["a.mp4"],
    "audios": ["a.mp4"],
    "reward_model": {"style": "rule", "ground_truth": "happy"},
    "extra_info": {"index": 0},
}
TALK = {
    "messages": [*GOOD["prompt"], {"role": "assistant", "content": "<think>A smile.</think>\n<answer>happy</answer>"}],
    "videos": ["a.mp4"],
    "audios": ["a.mp4"],
}


def user(content: object) -> list[dict]:
    return [{"role": "user", "content": content}]


def label(value: object) -> dict:
    return {"reward_model": {"ground_truth": value}}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"prompt": None}, "no 'prompt'; its columns are data_source, prompt"),
        ({"prompt": "Which emotion?"}, "prompt: input should be a valid list, 'Which emotion?' found"),
        ({"prompt": {"role": "user", "content": "Who?"}}, "prompt: input should be a valid list"),
        ({"prompt": []}, "needed: one of the user"),
        ({"prompt": ["Who?"]}, "prompt.0: input should be a valid dictionary"),
        ({"prompt": user(None)}, "prompt.0.content: input should be a valid string, None found"),
        ({"prompt": user([{"type": "text", "text": "Who?"}])}, "prompt.0.content: input should be a valid string"),
        ({"prompt": user(" ")}, "prompt.0: the user says nothing"),
        ({"prompt": [{"content": "<video><audio>Who?"}]}, "no prompt.0.role"),
        ({"prompt": [{"role": "human", "content": "<video><audio>Who?"}]}, "prompt.0.role: input should be 'system'"),
        ({"prompt": [*GOOD["prompt"], {"role": "assistant", "content": "Hm."}]}, "the last of the user"),
        ({"prompt": [*GOOD["prompt"], {"role": "system", "content": "Be kind."}, *user("?")]}, "a system's first"),
        ({"prompt": [{"role": "system", "content": "<video>"}, *user("<audio>?")]}, "media belong to the user's"),
        ({"prompt": user("<video><audio>Who? <|humanomni_video|>")}, "the special token <|humanomni_video|>"),
        ({"prompt": user("<video><audio>?<|im_end|>\n<|im_start|>assistant")}, "the special token <|im_end|>"),
        ({"prompt": user("<video><audio>\ud83d")}, "prompt.0.content: input should be a valid string, unable to parse"),
        ({"prompt": user("<image><video><audio>Who?")}, "images; HumanOmni sees videos"),
        ({"images": ["a.png"]}, "images; HumanOmni sees videos"),
        ({"videos": None}, "1 <video> in the text and 0 videos"),
        ({"videos": ["a.mp4", "b.mp4"]}, "1 <video> in the text and 2 videos"),
        ({"videos": "a.mp4"}, "videos: input should be a valid list, 'a.mp4' found"),
        ({"videos": [None]}, "videos.0.0: input should be a valid string, None found"),
        ({"videos": [{"video": "a.mp4"}]}, "videos.0.0: input should be a valid string"),
        ({"videos": [[]]}, "videos.0: list should have at least 1 item"),
        ({"videos": [""]}, "videos.0.0: string should have at least 1 character"),
        ({"videos": ["\udcff.mp4"]}, "videos.0.0: input should be a valid string, unable to parse"),
        ({"audios": [["a.wav"]]}, "audios.0: input should be a valid string"),
        ({"audios": [None]}, "audios.0: input should be a valid string, None found"),
        ({"data_source": None}, "data_source: input should be a valid string"),
        ({"reward_model": "happy"}, "reward_model: input should be a valid dictionary"),
        ({"reward_model": {}}, "no reward_model.ground_truth"),
        (label(3), "reward_model.ground_truth: input should be a valid string, 3 found"),
        (label(["happy"]), "reward_model.ground_truth: input should be a valid string"),
        (label({"label": "happy"}), "reward_model.ground_truth: input should be a valid string"),
        (label(float("nan")), "reward_model.ground_truth: input should be a valid string, nan found"),
        (label(" "), "is empty"),
        (label("<answer> </answer>"), "the label '<answer> </answer>' is empty"),
        (label("happy<|im_end|>"), "the special token <|im_end|>"),
        ({"extra_info": "0"}, "extra_info: input should be a valid dictionary"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_described(changes: dict, found: str) -> None:
    assert problems_of(GOOD, PromptRow, "prompt") == []
    problems = problems_of(GOOD | changes, PromptRow, "prompt")
    assert len(problems) == 1 and found in problems[0]


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        (GOOD["prompt"], "the last of the assistant"),
        (TALK["messages"][1:], "needed: one of the user"),
        ([*GOOD["prompt"], {"role": "assistant", "content": ""}], "messages.1: the assistant says nothing"),
        ([*user("<audio>Who?"), {"role": "assistant", "content": "<video>"}], "media belong to the user's"),
        ([*GOOD["prompt"], {"role": "gpt", "content": "happy"}], "messages.1.role"),
        ([*GOOD["prompt"], {"role": "assistant", "content": "happy<|im_end|>"}], "the special token <|im_end|>"),
    ],
)
def test_a_conversation_that_cannot_be_learnt_is_described(messages: list, found: str) -> None:
    assert problems_of(TALK, ConversationRow, "messages") == []
    problems = problems_of(TALK | {"messages": messages}, ConversationRow, "messages")
    assert len(problems) == 1 and found in problems[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": [{"role": "system", "content": ""}, *GOOD["prompt"]]},
        {"prompt": user("Which?"), "videos": None, "audios": []},
        {"videos": [["1.png", "2.png"]]},
        {"reward_model": {"ground_truth": "<answer> happy </answer>", "style": "rule", "weight": 2}},
        {"extra_info": None, "turns": 3, "note": {"a": [1, None]}},
        {"prompt": user("<video><audio>Is 3 < 4 | 5 > 4? 难过 😀")},
    ],
)
def test_what_can_be_used_passes(changes: dict) -> None:
    assert problems_of(GOOD | changes, PromptRow, "prompt") == []


def test_all_problems_of_all_rows_are_listed(tmp_path) -> None:
    rows = [GOOD, GOOD | label(3) | {"audios": [None]}, 7, GOOD | {"prompt": "Who?"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(RowsError, match="4 problems in 4 rows") as error:
        load_rows([str(tmp_path / "rows.json")])
    assert [line.partition(" row ")[2][0] for line in str(error.value).splitlines()[1:]] == ["1", "1", "2", "3"]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("rows.json", b'[{"prompt": ', "not readable as .json"),
        ("rows.json", b"\xff\xfe", "not readable as .json"),
        ("rows.json", b'{"prompt": []}', "a list of rows was expected, a dict found"),
        ("rows.jsonl", b'{"a": 1}\n{"a": \n', "line 2"),
        ("rows.parquet", b"PAR1 and no more", "not readable as .parquet"),
        ("rows.txt", b"a,b\n", "rows are read from .parquet, .json, .jsonl, .csv files"),
        ("rows.csv", b"a,b\n", "no rows in it"),
        ("rows.json", b"[]", "no rows in it"),
    ],
)
def test_a_file_that_holds_no_rows_is_named(tmp_path, capsys, name: str, content: bytes, found: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert main(["check", str(tmp_path / name)]) == 1
    message = capsys.readouterr().err
    assert f"{tmp_path / name}: " in message and found in message
