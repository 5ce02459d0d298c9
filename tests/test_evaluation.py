"""Evaluation: the results file survives kills, scores match hand-made numbers, ablations take away what they name."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from verl_omni.evaluation.answering import blank_video
from verl_omni.evaluation.results import (
    Answer,
    ResultsError,
    ResultsFile,
    media_fingerprint,
    model_fingerprint,
    read_answers,
)
from verl_omni.evaluation.scoring import changed_share, consistency, difference, intervals, score, score_all
from verl_omni.labels import LABELS
from verl_omni.metrics import war
from verl_omni.rewards import extract_explanation
from verl_omni.rewards.lexicon import EMOTION_OF, EMOTIONS, emotion_of, emotions_in

CLIPS = Path(__file__).parent / "golden" / "clips"


def answer(index: int, label: str, predicted: str, variant: str = "normal", think: str = "…", **changes) -> Answer:
    made = Answer(
        key=f"{variant}-{index}",
        model="R1",
        data_source="dfew",
        id=f"dfew/{index}",
        variant=variant,
        label=label,
        question="?",
        videos=["a.mp4"],
        audios=["a.mp4"],
        completion=f"<think>{think}</think>\n<answer>{predicted}</answer>",
        finish_reason="stop",
    )
    return replace(made, **changes)


# --- the results file


def test_answers_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    made = [answer(1, "happy", "sad"), answer(2, "fear", "fear", completion="第一\nzeile", error="broken")]
    with ResultsFile(path, {}) as file:
        for item in made:
            file.add(item)
    assert read_answers(path) == made


def test_a_torn_last_line_is_dropped_and_the_next_answer_starts_a_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with ResultsFile(path, {}) as file:
        file.add(answer(1, "happy", "sad"))
    with path.open("ab") as file:
        file.write(b'{"key": "normal-2", "mod')
    assert [item.id for item in read_answers(path)] == ["dfew/1"]
    with ResultsFile(path, {}) as file:
        assert list(file.answers) == ["normal-1"]
        file.add(answer(2, "fear", "fear"))
    assert [item.id for item in read_answers(path)] == ["dfew/1", "dfew/2"]


def test_an_answer_is_on_disk_when_the_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    script = (
        "import os, signal\n"
        "from verl_omni.evaluation.results import Answer, ResultsFile\n"
        f"with ResultsFile({str(path)!r}, {{}}) as file:\n"
        "    for i in range(3):\n"
        "        file.add(Answer(str(i), 'm', 'dfew', str(i), 'normal', 'sad', '?', [], []))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    died = subprocess.run([sys.executable, "-c", script], check=False, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert died.returncode == -signal.SIGKILL
    with ResultsFile(path, {}) as file:
        assert list(file.answers) == ["0", "1", "2"]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with ResultsFile(path, {}) as file:
        file.add(answer(1, "happy", "sad"))
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    with pytest.raises(ResultsError, match=r"r\.jsonl, line 1"):
        read_answers(path)


@pytest.mark.parametrize(("field", "value"), [("completion", 3), ("videos", "a.mp4"), ("label", None)])
def test_a_line_of_another_type_is_named(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(asdict(answer(1, "happy", "sad")) | {field: value}) + "\n")
    with pytest.raises(ResultsError, match=rf"r\.jsonl, line 1: .*{field}"):
        read_answers(path)


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.touch()
    with pytest.raises(ResultsError, match=r"/dev/full: No space left on device"), ResultsFile(path, {}) as file:
        file._file = open("/dev/full", "ab")  # noqa: SIM115
        file.add(answer(1, "happy", "sad"))


def test_answers_made_under_another_key_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with ResultsFile(path, {}) as file:
        file.add(answer(1, "happy", "sad"))
        file.add(answer(2, "happy", "sad"))
    keys = {("R1", "dfew/1", "normal"): "normal-1", ("R1", "dfew/2", "normal"): "new-key"}
    with ResultsFile(path, keys) as file:
        assert file.superseded == 1
        assert list(file.answers) == ["normal-1"]
    assert [item.key for item in read_answers(path)] == ["normal-1"]
    assert [item.key for item in read_answers(path.with_name("r.jsonl.superseded"))] == ["normal-2"]


def test_two_evaluations_cannot_write_one_file(tmp_path: Path) -> None:
    with ResultsFile(tmp_path / "r.jsonl", {}), pytest.raises(ResultsError, match="another evaluation writes"):
        ResultsFile(tmp_path / "r.jsonl", {})


def test_fingerprints_follow_content(tmp_path: Path) -> None:
    clip = CLIPS / "landscape.mp4"
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    assert media_fingerprint(copy) == media_fingerprint(clip)
    assert media_fingerprint(CLIPS / "square.mp4") != media_fingerprint(clip)
    assert media_fingerprint(CLIPS / "frames_dir") != media_fingerprint(clip)
    assert media_fingerprint(tmp_path / "none.mp4") == "missing"
    before = model_fingerprint(tmp_path)
    assert model_fingerprint(tmp_path) == before
    copy.write_bytes(b"other weights")
    assert model_fingerprint(tmp_path) != before


def test_a_models_fingerprint_follows_its_subfolders_and_not_its_clock(tmp_path: Path) -> None:
    tokenizer = tmp_path / "bert_tokenizer" / "tokenizer.json"
    tokenizer.parent.mkdir()
    tokenizer.write_text('{"a": 1}')
    before = model_fingerprint(tmp_path)
    os.utime(tokenizer, ns=(1, 1))
    assert model_fingerprint(tmp_path) == before
    tokenizer.write_text('{"a": 2}')
    assert model_fingerprint(tmp_path) != before
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(100 * 2**20)
    before = model_fingerprint(tmp_path)
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    assert model_fingerprint(tmp_path) != before  # too large to read


# --- scores


def mixed_answers() -> list[Answer]:
    return [
        answer(0, "happy", "happy"),
        answer(1, "happy", "sad"),
        answer(2, "happy", "happy"),
        answer(3, "sad", "joyful"),
        answer(4, "sad", "sad", finish_reason="length", completion="sad"),
        answer(5, "fear", "", completion="", error="a.mp4: cannot be decoded"),
    ]


def test_scores_of_a_small_hand_made_set() -> None:
    result = score(mixed_answers())
    assert result.rows == 6
    assert result.war == pytest.approx(50.0)
    assert result.uar == pytest.approx((200 / 3 + 50 + 0) / 3)
    assert result.recall == pytest.approx({"happy": 200 / 3, "sad": 50.0, "fear": 0.0})
    assert result.support == {"happy": 3, "sad": 2, "fear": 1}
    assert result.out_of_set == {"joyful": 1}
    assert result.failures == [("dfew/5", "a.mp4: cannot be decoded")]
    assert result.format_rate == pytest.approx(100 * 4 / 6)
    assert result.truncated == 1
    happy, sad, other = (result.labels.index(word) for word in ("happy", "sad", "(other)"))
    assert result.confusion[happy][happy] == 2
    assert result.confusion[happy][sad] == 1
    assert result.confusion[sad][other] == 1
    assert sum(map(sum, result.confusion)) == 6


def test_a_corpus_without_a_label_set_is_scored_on_the_labels_it_has() -> None:
    result = score([answer(0, "worried", "worried", data_source="own"), answer(1, "happy", "sad", data_source="own")])
    assert result.labels == ["happy", "worried", "(other)"]
    assert result.war == 50.0


def test_a_label_outside_the_corpus_set_is_a_class_of_its_own() -> None:
    result = score([answer(0, "joy", "joy"), answer(1, "happy", "joy")])
    assert result.recall == {"happy": 0.0, "joy": 100.0}
    assert result.support == {"happy": 1, "joy": 1} and result.out_of_set == {}


def test_scores_are_by_model_corpus_and_variant() -> None:
    answers = [
        answer(0, "sad", "sad", variant="audio_muted"),
        answer(0, "sad", "sad"),
        answer(1, "calm", "calm", data_source="ravdess"),
        answer(2, "sad", "sad", model="SFT"),
    ]
    assert [(s.model, s.data_source, s.variant) for s in score_all(answers)] == [
        ("R1", "dfew", "normal"),
        ("R1", "dfew", "audio_muted"),
        ("R1", "ravdess", "normal"),
        ("SFT", "dfew", "normal"),
    ]
    with pytest.raises(ValueError, match="one model, corpus and variant expected"):
        score(answers)


def test_intervals_agree_with_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(1)
    truth = rng.choice(["happy", "sad", "fear"], size=80, p=[0.6, 0.3, 0.1]).tolist()
    predicted = [t if rng.random() < 0.6 else "happy" for t in truth]
    samples = rng.integers(0, 80, size=(2000, 80))
    hits, truths = (np.array(predicted) == truth)[samples], np.array(truth)[samples]  # [2000, 80]
    wars = 100 * hits.mean(axis=1)
    uars = 100 * np.mean([np.mean(hits, axis=1, where=truths == label) for label in set(truth)], axis=0)
    war_interval, uar_interval = intervals(truth, predicted)
    assert war_interval == pytest.approx(np.percentile(wars, [2.5, 97.5]), abs=1.5)
    assert uar_interval == pytest.approx(np.percentile(uars, [2.5, 97.5]), abs=1.5)
    assert war_interval[0] < war(truth, predicted) < war_interval[1]
    assert intervals(truth, predicted) == (war_interval, uar_interval)


def test_one_row_has_no_interval() -> None:
    assert intervals(["sad"], ["sad"]) == (None, None)


def test_changed_share_compares_rows_answered_in_both_variants() -> None:
    answers = [
        answer(0, "sad", "sad"),
        answer(1, "sad", "sad"),
        answer(2, "sad", "sad", error="broken"),
        answer(0, "sad", "happy", variant="audio_muted"),
        answer(1, "sad", "sad", variant="audio_muted", think="something else"),
        answer(2, "sad", "happy", variant="audio_muted"),
    ]
    assert changed_share(answers, "audio_muted") == (1, 2)
    assert changed_share(answers, "video_blanked") == (0, 0)


def test_intervals_go_by_actor_where_rows_name_them() -> None:
    """Ten actors of whom each gets all or nothing right: their rows say no more than ten rows would."""
    by_actor = [
        answer(100 * actor + row, "sad", "sad" if actor % 2 else "fear", actor=str(actor))
        for actor in range(10)
        for row in range(20)
    ]
    by_row = [replace(item, actor="") for item in by_actor]
    wide, narrow = score(by_actor).war_interval, score(by_row).war_interval
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])
    assert wide == score([replace(item, actor="", id=item.actor) for item in by_actor[::20]]).war_interval
    assert score(by_actor[:20]).war_interval is None, "one actor"


def test_two_models_are_compared_on_the_rows_of_both_actor_by_actor() -> None:
    ours = [answer(i, "sad", "sad", actor=str(i // 4)) for i in range(40)]
    theirs = [replace(item, model="SFT", completion="fear") for item in ours[:32]]
    found = difference(ours, theirs)
    assert (found.model, found.other, found.rows, found.groups, found.war) == ("R1", "SFT", 32, 8, 100.0)
    assert found.p_value == pytest.approx(2 / 2**8, abs=0.004), "all signs alike, of eight actors"
    assert difference(ours, [replace(item, model="SFT") for item in ours]).p_value == 1.0


def test_words_for_a_class_count_as_it_only_when_asked_and_are_counted() -> None:
    answers = [answer(0, "happy", "joy"), answer(1, "anger", "angry"), answer(2, "sad", "bored")]
    assert score(answers).war == 0.0 and score(answers).normalized == {}
    found = score(answers, normalize=True)
    assert found.war == pytest.approx(200 / 3)
    assert found.normalized == {"joy as happy": 1, "anger as angry": 1}
    assert found.out_of_set == {"bored": 1}


# --- ablation


def test_blanked_video_is_one_colour_and_normalises_to_nearly_zero() -> None:
    frames = np.random.default_rng(0).integers(0, 256, size=(8, 5, 7, 3), dtype=np.uint8)
    blank = blank_video(frames, [0.5, 0.4, 0.3])
    assert blank.shape == frames.shape and blank.dtype == np.uint8
    assert np.unique(blank.reshape(-1, 3), axis=0).tolist() == [[127, 102, 76]]
    assert np.abs(blank / 255 - [0.5, 0.4, 0.3]).max() < 1 / 255


# --- consistency


@pytest.mark.parametrize(
    ("think", "given", "expected"),
    [
        ("Her furrowed brows show anger.", "angry", "consistent"),
        ("He seems ANGRY, and afraid.", "fear", "consistent"),
        ("Her furrowed brows show anger.", "happy", "contradicting"),
        ("A man in a brown jacket.", "angry", "silent"),
        ("She is furious.", "bored", "silent"),
        ("", "angry", "silent"),
        ("He is madly running around an angrylooking dog.", "angry", "silent"),
        ("He looks worried.", "anxious", "consistent"),
    ],
)
def test_consistency_of_explanation_and_answer(think: str, given: str, expected: str) -> None:
    assert consistency(think, given) == expected


def test_every_label_names_one_emotion_and_no_word_has_two() -> None:
    for labels in LABELS.values():
        for label in labels:
            assert emotions_in(label) == [emotion_of(label)] and emotion_of(label) in EMOTIONS
    assert sum(len({emotion, *words.split()}) for emotion, words in EMOTIONS.items()) == len(EMOTION_OF)


def test_explanation_is_what_stands_in_the_think_tags() -> None:
    assert extract_explanation("<think> a\nb </think>\n<answer>sad</answer>") == "a\nb"
    assert extract_explanation("sad") == ""
    assert json.dumps(extract_explanation("<think>open")) == '""'
