"""Answers from an open vocabulary: equal to numbers of AffectGPT's code, and to tables made by hand."""

import json
from pathlib import Path

import pytest

from verl_omni.metrics import hit_rate, weighted_f1, wheel_score
from verl_omni.rewards import hit_reward, wheel_reward
from verl_omni.rewards.wheel import emotion_list, sectors, set_scores

# Random words of the published lists, scored by AffectGPT's evaluation (wheel.py) on its own files.
GOLDEN = json.loads((Path(__file__).parent / "golden/wheel.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{len(case['labels'])} rows")
def test_wheel_scores_equal_affectgpts(case):
    for level in (1, 2):
        published = {name: 100 * value for name, value in case[f"level{level}"].items()}
        assert wheel_score(case["labels"], case["predictions"], level) == pytest.approx(published, abs=1e-9)
    assert hit_rate(case["basic"], case["predictions"]) == pytest.approx(100 * case["hit_rate"], abs=1e-9)


@pytest.mark.parametrize(
    ("text", "emotions"),
    [
        ("happy", ["happy"]),
        ("Happy, excited and proud", ["happy", "excited", "proud"]),
        ("['anxious', 'let down']", ["anxious", "let down"]),
        ("[anxious; sad]", ["anxious", "sad"]),
        ("", []),
        ("[]", []),
    ],
)
def test_an_answer_lists_emotions(text, emotions):
    assert emotion_list(text) == emotions


def test_sectors_by_hand():
    # Inner rings: 1 mad disgusted sad happy surprised scared, 2 fearful angry ..., 3 mad scared joyful powerful ...
    assert sectors(["furious"]) == [{"mad"}, {"angry"}, {"mad"}, {"anger"}, {"mad"}]
    assert sectors(["joyful", "cheerful"]) == [{"happy"}, {"happy"}, {"joyful"}, {"joy"}, {"powerful"}]
    assert sectors(["notaword", "neutral"]) == [set()] * 5


def test_precision_and_recall_of_sets():
    true, given = [{"a", "b"}, {"a"}, set(), {"a"}], [{"a", "c", "d"}, {"a"}, {"a"}, set()]
    assert set_scores(true, given) == [(1 / 3, 1 / 2), (1.0, 1.0), None, (0.0, 0.0)]


def test_f_is_of_the_averages_and_not_the_average():
    # In all wheels: row 1 has precision 1/2 and recall 1, row 2 precision 1 and recall 1/2.
    labels, predictions = ["furious", "furious, depressed"], ["furious, depressed", "furious"]
    assert wheel_score(labels, predictions) == pytest.approx({"f": 75.0, "precision": 75.0, "recall": 75.0})


def test_words_outside_the_wheels_count_for_nothing():
    assert wheel_score(["furious", "neutral"], ["furious, notaword", "sad"])["f"] == 100.0
    with pytest.raises(ValueError, match="neutral"):
        wheel_score(["neutral"], ["sad"])


def test_wheel_reward_is_f1_of_one_answer():
    assert wheel_reward("<answer>angry</answer>", "furious") == 1.0
    assert wheel_reward("<answer>furious, depressed</answer>", "furious") == pytest.approx(2 / 3)
    assert wheel_reward("<answer>depressed</answer>", "furious") == 0.0
    assert wheel_reward("<answer></answer>", "furious") == 0.0
    assert (wheel_reward("Neutral", "neutral"), wheel_reward("sad", "neutral")) == (1.0, 0.0)


def test_hit_reward_asks_for_the_label_among_the_answers():
    assert hit_reward("<answer>depressed, furious</answer>", "angry") == 1.0
    assert hit_reward("<answer>depressed</answer>", "angry") == 0.0
    assert (hit_reward("neutral, sad", "neutral"), hit_reward("sad", "neutral")) == (1.0, 0.0)


def test_weighted_f1_by_hand():
    labels = ["positive"] * 3 + ["negative"]
    predictions = ["positive", "positive", "negative", "negative"]
    positive, negative = 2 * 1.0 * (2 / 3) / (1.0 + 2 / 3), 2 * 0.5 * 1.0 / 1.5
    assert weighted_f1(labels, predictions) == pytest.approx(100 * (3 * positive + negative) / 4)
    assert weighted_f1(["positive", "negative"], ["neutral", "negative"]) == 50.0
