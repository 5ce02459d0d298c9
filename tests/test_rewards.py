"""The two rewards: equal to the original's on recorded rows, and light to import."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from verl_omni.evaluation.scoring import consistency
from verl_omni.labels import ALIASES, LABELS, normalize
from verl_omni.prompts import QUESTION, instruction
from verl_omni.rewards import TERMS, accuracy_reward, compute_score, extract_explanation, format_reward

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


@pytest.mark.parametrize(
    "unit", ["<answer>", "</answer>", "<think>", "</think> ", "<answer>\n", "\n", "a ", "not happy but sad. "]
)
def test_a_megabyte_of_anything_is_scored_in_linear_time(unit):
    """30 to 50 ms on an idle core; a quadratic pattern takes minutes."""
    text = (unit * (1_000_000 // len(unit) + 1))[:1_000_000]
    wrapped = f"<think>{text[: len(text) // 2]}</think><answer>{text[len(text) // 2 :]}</answer>"
    for completion in (text, f"<think>{text}</answer>", wrapped):
        for name in TERMS:
            assert is_fast(TERMS[name], completion, "happy"), name
        assert is_fast(lambda text: consistency(extract_explanation(text), "happy"), completion)


def is_fast(function, *args):
    """Whether one of six calls takes less than 0.25 CPU seconds: other work on the machine does not count."""

    def timed():
        start = time.process_time()
        function(*args)
        return time.process_time() - start

    return any(timed() < 0.25 for _ in range(6))


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


def test_terms_are_a_table_of_weights_over_the_papers_two():
    text = "<think>His face is bright. He is happy.</think>\n<answer>happy</answer>"
    assert compute_score("demo", text, "happy", explanation=0.5)["score"] == 2.5
    assert compute_score("demo", text, "sad", explanation=0.5, format=0.25)["score"] == 0.25
    measured = compute_score("demo", text, "happy", format=0, faithfulness={"weight": 0, "senses": ["sight"]})
    assert measured == {"score": 1.0, "accuracy": 1.0, "format": 1.0, "faithfulness": 1.0, "pred": "happy"}
    assert compute_score("demo", text, "happy", explanation=1).keys() >= {"explanation", "eea", "epc", "fcr"}


def test_an_unknown_term_is_refused_with_the_list():
    with pytest.raises(TypeError, match=r"no reward term 'explanations'; there are accuracy, format, explanation, "):
        compute_score("demo", GOOD, "happy", explanations=1.0)
    with pytest.raises(TypeError, match="verifyer"):
        compute_score("demo", GOOD, "happy", explanation={"verifyer": "DIR"})


def test_import_is_light():
    """Both figures from a fresh interpreter, which has nothing of this test's imports; the time is the CPU's."""
    code = (
        "import time, sys; start = time.process_time(); import verl_omni.rewards; "
        "print(time.process_time() - start, [name for name in ('torch', 'verl', 'transformers', 'numpy') "
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
    assert normalize("helplessness", "mafw") == "helpless"
    assert set(ALIASES.values()) <= {label for labels in LABELS.values() for label in labels}
    with pytest.raises(ValueError, match="'calm' is not one of dfew's"):
        normalize("calm", "dfew")
    with pytest.raises(ValueError, match="corpus 'emotion6'"):
        normalize("happy", "emotion6")


class WordTokenizer:
    """Token ids are positions in a list of pieces; the last two stand for special tokens."""

    pieces = ("<think>He ", "smiles.</think>\n", "<answer>happy</answer>", "<|im_end|>", "<|endoftext|>")

    def decode(self, ids, skip_special_tokens=False):
        return "".join(self.pieces[index] for index in ids if not (skip_special_tokens and index >= 3))


def reward_manager(**reward):
    from omegaconf import OmegaConf
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

    default = {"custom_reward_function": {"path": None}, "reward_model": {"enable": False}}
    config = OmegaConf.create({"reward": {**default, **reward}})
    return get_reward_manager_cls("accuracy_format")(config=config, tokenizer=WordTokenizer(), compute_score=None)


def scored(manager, label, response, **row):
    import numpy as np
    import torch
    from verl import DataProto

    data = DataProto.from_dict(
        tensors={
            "responses": torch.tensor([[*response, 4]]),
            "attention_mask": torch.tensor([[1] * 3 + [1] * 4 + [0]]),
        },
        non_tensors={
            "data_source": np.array(["demo"], dtype=object),
            "reward_model": np.array([{"ground_truth": label}], dtype=object),
            "extra_info": np.array([{"index": 0}], dtype=object),
            **{key: np.array([value]) for key, value in row.items()},
        },
    )
    return manager.loop.run_until_complete(manager.run_single(data))


def test_reward_manager_scores_the_decoded_response():
    result = scored(reward_manager(), "happy", [0, 1, 2, 3])
    assert result["reward_score"] == 2.0
    assert result["reward_extra_info"] == {
        "score": 2.0,
        "accuracy": 1.0,
        "format": 1.0,
        "pred": "happy",
        "recall/happy": 1.0,
    }
    assert scored(reward_manager(), "sad", [0, 1, 2, 3])["reward_extra_info"]["recall/sad"] == 0.0


def test_reward_weights_come_from_the_configuration():
    manager = reward_manager(reward_kwargs={"accuracy_weight": 0.5, "format_weight": 0.25})
    assert scored(manager, "happy", [0, 1, 2, 3])["reward_score"] == 0.75
    with pytest.raises(TypeError, match="accurracy_weight"):
        reward_manager(reward_kwargs={"accurracy_weight": 0.5})
    with pytest.raises(ValueError, match=r"custom_reward_function\.path=mine\.py"):
        reward_manager(custom_reward_function={"path": "mine.py"})


def test_manager_scores_the_terms_of_the_configuration():
    manager = reward_manager(reward_kwargs={"explanation": 0.5, "faithfulness": {"weight": 2}})
    prompt = [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Who?"}]}]
    result = scored(manager, "happy", [0, 1, 2, 3], raw_prompt=prompt)
    extra = result["reward_extra_info"]
    # "He smiles.": no word of an emotion, and the one sense that a clip without sound has.
    assert (extra["explanation"], extra["faithfulness"], result["reward_score"]) == (0.0, 1.0, 4.0)
    assert extra["media"] == "a.mp4"
    assert scored(manager, "happy", [0, 1, 2, 3])["reward_extra_info"]["faithfulness"] == 0.5


def test_manager_goes_with_verls_reward_model_where_the_function_is_its_own():
    manager = reward_manager(custom_reward_function={"path": "pkg://verl_omni.rewards"})
    assert scored(manager, "happy", [0, 1, 2, 3])["reward_score"] == 2.0


def test_a_reward_model_on_the_trainers_gpus_is_refused_which_would_score_without_labels():
    with pytest.raises(ValueError, match="enable_resource_pool=true"):
        reward_manager(reward_model={"enable": True, "enable_resource_pool": False})
    assert reward_manager(reward_model={"enable": True, "enable_resource_pool": True})


def test_verls_validation_turns_the_per_class_figures_into_recalls():
    """The rows as the trainer collects them: a row without a class' figure holds None there."""
    from verl.trainer.ppo.metric_utils import process_validation_metrics

    labels, hits = ["happy", "happy", "happy", "sad"], [1.0, 1.0, 0.0, 1.0]
    infos = {
        f"recall/{name}": [hit if label == name else None for label, hit in zip(labels, hits, strict=True)]
        for name in ("happy", "sad")
    }
    figures = process_validation_metrics(["demo"] * 4, list("abcd"), infos)["demo"]
    assert figures["recall/happy"]["mean@1"] == pytest.approx(2 / 3)
    assert figures["recall/sad"]["mean@1"] == 1.0


def test_means_of_the_parts_are_over_the_rollouts_that_have_them():
    from verl_omni.adjustments.verl_log_reward_parts import means_of_parts

    infos = [{"accuracy": 1.0, "pred": "sad", "recall/sad": 1.0}, {"accuracy": 0.0, "pred": "", "recall/happy": 0.0}]
    assert means_of_parts(infos) == {
        "reward/accuracy/mean": 0.5,
        "reward/recall/sad/mean": 1.0,
        "reward/recall/happy/mean": 0.0,
    }
