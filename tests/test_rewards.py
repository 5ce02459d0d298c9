"""The two rewards: equal to the original's on recorded rows, and light to import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from verl_omni.labels import ALIASES, LABELS, normalize
from verl_omni.prompts import QUESTION, instruction
from verl_omni.rewards import accuracy_reward, compute_score, format_reward

ROWS = json.loads((Path(__file__).parent / "golden/rewards.json").read_text())["rows"]
# The original asks math_verify before comparing text; these rows are right for it alone. We compare text only.
MATH_VERIFY_ONLY = {
    *("num_no_tags", "num_after", "valence_label", "valence_label2", "label_digit_collision", "dollar_both"),
}
GOOD = "<think>He smiles.</think>\n<answer>happy</answer>"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_rewards_equal_the_original(row):
    accuracy = 0.0 if row["name"] in MATH_VERIFY_ONLY else row["accuracy"]
    assert accuracy_reward(row["completion"], row["solution"]) == accuracy
    assert format_reward(row["completion"]) == row["format"]


def test_the_only_difference_is_what_math_verify_finds_in_digits_and_latex():
    assert {row["name"] for row in ROWS if row["math_verify_only"] and not row["string_match_only"]} == MATH_VERIFY_ONLY
    labels = [row["solution"] for row in ROWS if row["name"] in MATH_VERIFY_ONLY]
    assert all(any(sign.isdigit() or sign == "$" for sign in label) for label in labels), "never an emotion word"


def test_bare_and_tagged_labels_are_the_same():
    for label in ("happy", " happy\n", "<answer> happy </answer>"):
        assert accuracy_reward(GOOD, label) == 1.0


def test_compute_score_follows_verls_contract():
    assert compute_score("demo", GOOD, "happy") == {"score": 2.0, "accuracy": 1.0, "format": 1.0, "pred": "happy"}
    assert compute_score(data_source="demo", solution_str="sad", ground_truth="happy", extra_info={"index": 3}) == {
        "score": 0.0,
        "accuracy": 0.0,
        "format": 0.0,
        "pred": "sad",
    }
    assert compute_score("demo", GOOD, "sad", accuracy_weight=3.0, format_weight=0.5)["score"] == 0.5
    assert compute_score("demo", "happy", "happy", accuracy_weight=3.0, format_weight=0.5)["score"] == 3.0


def test_import_is_light():
    """Both figures from a fresh interpreter, which has nothing of this test's imports."""
    code = (
        "import time, sys; start = time.perf_counter(); import verl_omni.rewards; "
        "print(time.perf_counter() - start, [name for name in ('torch', 'verl', 'transformers', 'numpy') "
        "if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = run.stdout.split(" ", 1)
    assert heavy.strip() == "[]"
    assert float(seconds) < 0.2


def test_instruction_is_the_papers():
    assert instruction() == (
        f"{QUESTION}\nOutput the thinking process in <think> </think> and final emotion in <answer> </answer> tags."
    )


def test_labels_have_one_spelling_each():
    assert [len(LABELS[corpus]) for corpus in ("dfew", "mafw", "ravdess")] == [7, 11, 8]
    assert normalize(" Anger ", "dfew") == "angry"
    assert normalize("helpless", "mafw") == "helplessness"
    assert set(ALIASES.values()) <= {label for labels in LABELS.values() for label in labels}
    with pytest.raises(ValueError, match="'calm' is not one of dfew's"):
        normalize("calm", "dfew")
    with pytest.raises(ValueError, match="unknown corpus 'emotion6'"):
        normalize("happy", "emotion6")
