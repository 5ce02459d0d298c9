"""Answering: rows reach vLLM as verl sends them, failures are rows too, and a kill loses no answer."""

import json
import os
import subprocess
import sys
import time
from contextlib import closing
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from originals import cut_sound, soundless_clips
from taught_model import Taught
from transformers import AutoModelForCausalLM, AutoProcessor, RepetitionPenaltyLogitsProcessor

from benchmarks.faults import claim_a_billion_frames
from verl_omni.__main__ import main
from verl_omni.cli.evaluate import fold_warnings
from verl_omni.data.check import SILENCE, RowsError, settle_sounds
from verl_omni.data.dataset import OmniRLHFDataset
from verl_omni.data.files import read_rows
from verl_omni.data.row import conversation
from verl_omni.evaluation.answering import Settings, ask, load, load_rows, plan, start_engine, varied
from verl_omni.evaluation.results import read_answers
from verl_omni.evaluation.scoring import changed_share, score_all
from verl_omni.labels import options
from verl_omni.media.child import Children
from verl_omni.models.humanomni.tiny import build_tiny
from verl_omni.prompts import QUESTION, asked, instruction

CLIPS = Path(__file__).parent / "golden" / "clips"
MAX_TOKENS = 16


def rows_file(folder: Path, rows: list[dict]) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def rl_row(index: int, clip: str, content: str = "<video><audio>Why?", label: str = "sad", **changes) -> dict:
    row = {
        "data_source": "demo",
        "prompt": [{"role": "user", "content": content}],
        "videos": [clip],
        "audios": [clip],
        "reward_model": {"style": "rule", "ground_truth": label},
        "extra_info": {"id": f"demo/{index}", "index": index},
    }
    return row | changes


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("evaluation") / "tiny")


def test_keys_depend_on_all_that_decides_an_answer(tmp_path: Path) -> None:
    def key(row: dict, settings: tuple = ("model", 512), variant: str = "normal") -> str:
        ((_, (planned,)),) = plan(load_rows([str(rows_file(tmp_path, [row]))]), "R1", [variant], list(settings))
        return planned.key

    clip = str(CLIPS / "landscape.mp4")
    base = key(rl_row(0, clip))
    assert key(rl_row(0, clip)) == base
    (tmp_path / "same.mp4").write_bytes(Path(clip).read_bytes())
    assert key(rl_row(0, "same.mp4")) == base  # the content counts, not the place
    others = [
        key(rl_row(1, clip)),
        key(rl_row(0, clip, content="<video><audio>Who?")),
        key(rl_row(0, str(CLIPS / "square.mp4"))),
        key(rl_row(0, clip), settings=("other weights", 512)),
        key(rl_row(0, clip), variant="audio_muted"),
    ]
    assert len({base, *others}) == 6


def test_a_variant_needs_the_sense_it_takes_away(tmp_path: Path) -> None:
    clip = str(CLIPS / "landscape.mp4")
    sound_alone = rl_row(0, clip, content="<audio>Why?", videos=None)
    rows = load_rows([str(rows_file(tmp_path, [sound_alone, rl_row(1, clip, content="<video>Why?", audios=None)]))])
    planned = plan(rows, "R1", ["normal", "video_blanked", "audio_muted"], [])
    assert [[answer.variant for answer in answers] for _, answers in planned] == [
        ["normal", "audio_muted"],
        ["normal", "video_blanked"],
    ]


def test_rows_that_share_an_id_are_refused(tmp_path: Path) -> None:
    clip = str(CLIPS / "landscape.mp4")
    rows = load_rows([str(rows_file(tmp_path, [rl_row(0, clip), rl_row(0, clip)]))])
    with pytest.raises(RowsError, match=r"row 1: its extra_info\.id 'demo/0' is also that of"):
        plan(rows, "R1", ["normal"], [])


def test_evaluation_takes_no_rows_that_training_would_refuse(tmp_path: Path, tiny: Path, capsys) -> None:
    rows = rows_file(tmp_path, [rl_row(0, "a.mp4"), rl_row(1, "a.mp4", reward_model={})])
    assert main(["evaluate", str(tiny), "--data", str(rows), "--out", str(tmp_path)]) == 2
    assert "rows.json row 1: no reward_model.ground_truth" in capsys.readouterr().err


def load_job(tmp_path: Path, tiny: Path, row: dict, no_audio: str = "error"):
    processor = AutoProcessor.from_pretrained(tiny)
    rows = load_rows([str(rows_file(tmp_path, [row]))])
    settle_sounds(rows, no_audio)
    ((loaded, answers),) = plan(rows, "R1", ["normal"], [])
    with closing(Children()) as children:
        return load(loaded, answers, processor, children.call, Settings())


@pytest.mark.parametrize(
    ("clip", "no_audio"),
    [("landscape", "error"), *product(["noaudio", "empty", "instant"], ["video_only", "silence"])],
)
def test_a_row_reaches_vllm_as_verl_would_send_it(tmp_path: Path, tiny: Path, clip: str, no_audio: str) -> None:
    clips = {path.stem: str(path) for path in [CLIPS / "landscape.mp4", *soundless_clips(tmp_path)]}
    row = rl_row(0, clips[clip])
    processor = AutoProcessor.from_pretrained(tiny)
    data = {"max_prompt_length": 4096, "filter_overlong_prompts": False, "num_frames": None, "no_audio": no_audio}
    config = OmegaConf.create(data)
    path = rows_file(tmp_path, [row])
    messages = OmniRLHFDataset(str(path), processor.tokenizer, config, processor)[0]["raw_prompt"]
    _, videos, audios = OmniRLHFDataset._process_multi_modal_info(messages, 8, config)
    ((answer,), request) = load_job(tmp_path, tiny, row, no_audio)
    assert request["prompt"] == processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ((frames, metadata),) = request["multi_modal_data"]["video"]
    assert metadata == videos[0][1]
    np.testing.assert_array_equal(frames, videos[0][0])
    np.testing.assert_equal(request["multi_modal_data"].get("audio"), audios)
    # Mentions of a sound, and its muting, are judged by what the model was given.
    assert len(answer.audios) == len(audios or [])


@pytest.mark.slow
def test_rows_dropped_for_want_of_sound_are_told_and_no_misses(tmp_path: Path, tiny: Path, capsys, monkeypatch) -> None:
    clips = [*soundless_clips(tmp_path), cut_sound(CLIPS / "landscape.mp4", tmp_path / "cut.mp4")]
    rows = [rl_row(index, str(clip)) for index, clip in enumerate(clips)]
    rows.insert(1, rl_row(9, str(tmp_path / "gone.mp4")))  # fails before the engine is asked anything
    monkeypatch.setattr("verl_omni.evaluation.answering.start_engine", lambda *_: None)
    command = ["evaluate", str(tiny), "--data", str(rows_file(tmp_path, rows)), "--out", str(tmp_path)]
    assert main(command) == 0
    assert len(read_answers(tmp_path / "tiny.jsonl")) == 5
    assert main([*command, "--no-audio", "drop"]) == 0
    assert [answer.id for answer in read_answers(tmp_path / "tiny.jsonl")] == ["demo/9"], "misses of the run before"
    assert json.loads((tmp_path / "tiny.scores.json").read_text())[0]["rows"] == 1
    rows_file(tmp_path, rows[:1])
    assert main([*command, "--no-audio", "drop"]) == 2
    assert "rows.json: no row is left of 1, whose clips have no whole sound" in capsys.readouterr().err


def test_a_variant_changes_only_the_sense_it_names(tmp_path: Path, tiny: Path) -> None:
    _, normal = load_job(tmp_path, tiny, rl_row(0, str(CLIPS / "landscape.mp4")))
    blanked, muted = (varied(normal, variant, [0.5, 0.5, 0.5]) for variant in ("video_blanked", "audio_muted"))

    def video(request: dict) -> np.ndarray:
        return request["multi_modal_data"]["video"][0][0]

    def audio(request: dict) -> np.ndarray:
        return request["multi_modal_data"]["audio"][0]

    assert np.unique(video(blanked)).tolist() == [127] and np.unique(audio(muted)).tolist() == [0.0]
    assert video(blanked).shape == video(normal).shape and audio(muted).shape == audio(normal).shape
    assert video(normal).std() > 0 and audio(normal).std() > 0
    np.testing.assert_array_equal(video(muted), video(normal))
    np.testing.assert_array_equal(audio(blanked), audio(normal))
    assert normal["prompt"] == blanked["prompt"] == muted["prompt"]


def test_media_that_fail_become_the_rows_error(tmp_path: Path, tiny: Path) -> None:
    (answer,), request = load_job(tmp_path, tiny, rl_row(0, str(CLIPS / "broken.mp4")))
    assert "broken.mp4" in answer.error and not request
    silent = rl_row(0, str(CLIPS / "noaudio.mp4"))
    (answer,), _ = load_job(tmp_path, tiny, silent)
    assert "noaudio.mp4" in answer.error
    (answer,), request = load_job(tmp_path, tiny, silent, no_audio="video_only")
    assert not answer.error and request["multi_modal_data"].keys() == {"video"}
    assert len(request["multi_modal_data"]["video"]) == 1 and "<au_start>" not in request["prompt"]


def test_a_clip_that_makes_the_decoder_abort_costs_its_row_alone(tmp_path: Path, tiny: Path) -> None:
    killer = tmp_path / "killer.mp4"
    killer.write_bytes(claim_a_billion_frames((CLIPS / "landscape.mp4").read_bytes()))
    (answer,), _ = load_job(tmp_path, tiny, rl_row(0, str(killer)))
    assert "killer.mp4: the decoder crashes (SIGABRT" in answer.error
    (answer,), _ = load_job(tmp_path, tiny, rl_row(0, str(CLIPS / "landscape.mp4")))
    assert not answer.error


def test_another_question_keeps_the_media_and_lists_the_labels_if_asked(tmp_path: Path) -> None:
    rows = [
        rl_row(0, "a.mp4", data_source="mafw", label="anxious"),
        rl_row(1, "a.mp4", data_source="own", label="bored"),
    ]
    rows = load_rows([str(rows_file(tmp_path, rows))])
    ask(rows, "release", with_options=True)
    first, second = (row.data["prompt"][-1]["content"] for row in rows)
    assert first.startswith("<video><audio>As an emotional recognition expert, in the video, when")
    assert first.endswith("expressed?\nhappy ,surprise ,neutral ,angry ,disgust ,sad ,fear ,contemptuous, disappointed, helpless, anxious")  # fmt: skip # noqa: E501
    assert second.endswith("expressed?\nbored")
    ask(rows, "Who?", with_options=False)
    assert rows[0].data["prompt"][-1]["content"] == "<video><audio>Who?"
    ask(rows, "think", with_options=True)
    assert rows[1].data["prompt"][-1]["content"] == f"<video><audio>{instruction(QUESTION + chr(10) + 'bored')}"


@pytest.mark.parametrize("flag", [None, "--no-options"])
def test_the_preset_lists_the_labels_unless_told_not_to(tmp_path: Path, tiny: Path, flag: str | None) -> None:
    """In the released scripts the options stand in a comment; the clip is missing, so that no engine is needed."""
    rows = rows_file(tmp_path, [rl_row(0, str(tmp_path / "gone.mp4"), data_source="mafw", label="anxious")])
    command = ["evaluate", str(tiny), "--data", str(rows), "--out", str(tmp_path), "--preset", "r1omni-release"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("verl_omni.evaluation.answering.start_engine", lambda *_: None)
        assert main([*command, *([flag] if flag else [])]) == 0
    (answer,) = read_answers(tmp_path / "tiny.jsonl")
    assert answer.question == asked("release", "" if flag else options("mafw", {"anxious"}))
    assert ("contemptuous" in answer.question) == (flag is None)


def test_rows_of_the_folds_a_model_was_trained_on_are_told(tmp_path: Path) -> None:
    def warned(fold: int, split: str) -> list[str]:
        row = rl_row(0, "a.mp4", data_source="dfew", extra_info={"id": "1", "fold": fold, "split": split})
        return list(fold_warnings([rows_file(tmp_path, [row])], ["dfew=2"]))

    assert warned(2, "test") == warned(1, "train") == []
    assert "1 rows (fold 1, test) are in the training set of fold 2" in warned(1, "test")[0]
    assert "1 rows (fold 2, train)" in warned(2, "train")[0]


def test_a_folder_without_a_model_is_an_error(tmp_path: Path, capsys) -> None:
    assert main(["evaluate", str(tmp_path), "--data", "rows.json"]) == 2
    assert "no config.json in it" in capsys.readouterr().err


@pytest.mark.slow
def test_vllm_answers_survive_a_kill_and_show_both_senses(taught: Taught, tmp_path: Path, capsys, monkeypatch) -> None:
    rows = read_rows(taught.rows)
    rows.insert(0, rl_row(99, str(CLIPS / "broken.mp4"), content=rows[0]["prompt"][0]["content"]))
    rows.insert(1, rl_row(98, rows[1]["videos"][0], content="<video><audio>" + "Why? " * 3000))  # more than fits
    data = rows_file(tmp_path, rows)
    command = [sys.executable, "-m", "verl_omni", "evaluate", str(taught.model), "--data", str(data)]
    command += ["--out", str(tmp_path), "--name", "R1", "--modality-ablation", "--max-tokens", "40"]
    results = tmp_path / "R1.jsonl"
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "INFO"}

    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while first.poll() is None and (not results.is_file() or results.read_bytes().count(b"\n") < 4):
        time.sleep(0.002)
    first.kill()  # SIGKILL: nothing can be saved on the way out
    first.wait()
    saved = read_answers(results)
    assert len(saved) >= 4

    second = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    answers = read_answers(results)
    assert answers[: len(saved)] == saved
    assert len(answers) == len({item.key for item in answers}) == 3 * len(rows)
    assert "failed (normal), counted as a miss: demo/99: " in second.stderr
    assert "failed (normal), counted as a miss: demo/98: vLLM refused the row: " in second.stderr

    scores = {item.variant: item for item in score_all(answers)}
    assert scores["normal"].war == pytest.approx(100 * 12 / 14)
    assert scores["normal"].format_rate == pytest.approx(100 * 12 / 14)
    assert [row for row, _ in scores["normal"].failures] == ["demo/99", "demo/98"]
    for variant in ("video_blanked", "audio_muted"):
        assert scores[variant].war < scores["normal"].war
        changed, compared = changed_share(answers, variant)
        assert compared == 12 and changed > 0
    on_file = json.loads((tmp_path / "R1.scores.json").read_text())
    assert [item["variant"] for item in on_file] == ["normal", "video_blanked", "audio_muted"]

    monkeypatch.delattr("verl_omni.evaluation.answering.start_engine")  # all answers are on file
    assert main(command[command.index("evaluate") :]) == 0
    assert read_answers(results) == answers
    assert second.stderr.count("set_num_threads") < len(rows), "vLLM warns at each request"
    assert second.stdout == capsys.readouterr().out  # the scores and nothing else


def answer_as_the_original(model: Path, clip: str, sound: str, question: str, aspect: str, penalty: float) -> str:
    """What transformers generates, greedily, from frames of ``aspect`` with ``penalty`` on new tokens alone."""
    processor, network = AutoProcessor.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model).eval()
    turns = [{"role": "user", "content": f"<video><audio>{question}"}]
    inputs = processor.apply_chat_template(
        conversation(turns, [clip], [sound]), tokenize=True, return_dict=True, add_generation_prompt=True,
        return_tensors="pt", aspect_ratio=aspect,
    )  # fmt: skip
    length = inputs["input_ids"].shape[1]
    penalize = RepetitionPenaltyLogitsProcessor(penalty)
    for _ in range(MAX_TOKENS):
        with torch.no_grad():
            logits = network(**inputs).logits[:, -1]
        chosen = penalize(inputs["input_ids"][:, length:], logits).argmax(-1, keepdim=True)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], chosen], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    text = processor.tokenizer.decode(inputs["input_ids"][0, length:], skip_special_tokens=True)
    return text.rstrip("\ufffd")  # the start of a character, which vLLM leaves out


@pytest.mark.slow
def test_the_preset_answers_as_the_authors_evaluation(converted: Path, tmp_path: Path) -> None:
    """Squashed frames, their question with its options, their penalty, silence where there is none; a flag wins."""
    clips = [str(CLIPS / f"{name}.mp4") for name in ("landscape", "portrait", "noaudio")]
    rows = [rl_row(index, clip, data_source="mafw", label="anxious") for index, clip in enumerate(clips)]
    command = [sys.executable, "-m", "verl_omni", "evaluate", str(converted), "--out", str(tmp_path), "--name", "R1"]
    command += ["--data", str(rows_file(tmp_path, rows)), "--preset", "r1omni-release"]
    # The tiny model has fewer positions than an answer of 2,048 tokens needs.
    subprocess.run([*command, "--max-tokens", str(MAX_TOKENS), "--max-model-len", "512"], check=True)
    answers = sorted(read_answers(tmp_path / "R1.jsonl"), key=lambda answer: answer.id)
    question = asked("release", options("mafw", {"anxious"}))
    assert [answer.question for answer in answers] == [question] * 3
    sounds = [*clips[:2], str(SILENCE)]
    assert [answer.audios for answer in answers] == [[sound] for sound in sounds]

    def originals(aspect: str, penalty: float) -> list[str]:
        pairs = zip(clips, sounds, strict=True)
        return [answer_as_the_original(converted, *pair, question, aspect, penalty) for pair in pairs]

    given = [answer.completion.rstrip("\ufffd") for answer in answers]
    assert given == originals("squash", 1.1)
    assert given != originals("squash", 1.0) and given != originals("pad", 1.1)


@pytest.mark.slow
def test_a_model_gets_no_other_modality_than_the_ones_named(taught: Taught, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "verl_omni", "evaluate", str(taught.model), "--data", str(taught.rows)]
    command += ["--out", str(tmp_path), "--modalities", "video", "--modality-ablation", "--max-tokens", "40"]
    subprocess.run(command, capture_output=True, check=True)
    answers = read_answers(tmp_path / "taught.jsonl")
    assert {answer.variant for answer in answers} == {"normal", "video_blanked"}  # there is no sound to mute
    assert all(answer.videos and not answer.audios and not answer.error for answer in answers)
    scores = {item.variant: item for item in score_all(answers)}
    assert scores["normal"].war < 100, "it needs both senses"


def test_the_engine_starts_without_the_threads_of_its_parent(tiny, monkeypatch):
    """A fork of a process that has decoded, or asked the driver, is not safe."""
    import vllm

    methods = []
    monkeypatch.delenv("VLLM_WORKER_MULTIPROC_METHOD", raising=False)
    monkeypatch.setattr(vllm, "LLM", lambda **_: methods.append(vllm.envs.VLLM_WORKER_MULTIPROC_METHOD))
    start_engine(tiny, Settings(), {})
    assert methods == ["spawn"]
