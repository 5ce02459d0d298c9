"""Rewards for emotion recognition: the two of R1-Omni (arXiv 2503.05379, section 3), and more on request. Pure Python.

In any verl project, without anything else of this package::

    reward.custom_reward_function.path=pkg://verl_omni.rewards reward.custom_reward_function.name=compute_score

``manager`` is the verl reward manager, ``model_verifier`` asks a sequence classifier; neither is imported here, so that
this stays light.
"""

from collections.abc import Callable, Mapping
from typing import Any

from verl_omni.rewards.answer import accuracy_reward, extract_answer, extract_explanation, format_reward
from verl_omni.rewards.explanation import coherence, explanation_reward
from verl_omni.rewards.faithfulness import faithfulness_reward
from verl_omni.rewards.length import length_reward
from verl_omni.rewards.wheel import hit_reward, wheel_reward

# Name in the configuration and among the metrics -> function of completion and label.
TERMS: dict[str, Callable[..., float]] = {
    "accuracy": accuracy_reward,
    "format": format_reward,
    "explanation": explanation_reward,
    "faithfulness": faithfulness_reward,
    "length": length_reward,
    "wheel": wheel_reward,
    "hit": hit_reward,
}
__all__ = ["PAPER", "TERMS", "compute_score", "extract_answer", "extract_explanation", "format_reward", "read_terms"]
PAPER = {"accuracy": 1.0, "format": 1.0}  # R1-Omni adds both unweighted


def read_terms(given: Mapping[str, float | Mapping[str, Any]]) -> dict[str, tuple[float, dict[str, Any]]]:
    """Return weight and arguments of each reward term: the paper's two, and what is given.

    Args:
        given: term (``accuracy`` or ``accuracy_weight``) -> weight, or a mapping of ``weight`` and the term's own
            arguments (``{explanation: {weight: 0.5, verifier: DIR}}``). An unknown term is a ``TypeError``.
    """
    terms = {}
    for name, value in [*PAPER.items(), *given.items()]:
        term = name.removesuffix("_weight")
        if term not in TERMS:
            raise TypeError(f"no reward term {name!r}; there are {', '.join(TERMS)}")
        arguments = dict(value) if isinstance(value, Mapping) else {"weight": value}
        terms[term] = (float(arguments.pop("weight", 1.0)), arguments)
    return terms


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
    **terms: float | Mapping[str, Any],
) -> dict[str, float | str]:
    """Score one completion, by the contract of verl's ``custom_reward_function``.

    Args:
        data_source, reward_model_tokenizer: verl passes them along; not used.
        solution_str: the decoded completion without special tokens.
        ground_truth: the label.
        extra_info: the row's extra information; ``senses``, where it has them, are those the model was given.
        reward_router_address: where verl serves the explanation's verifier (``reward.reward_model``), if it does.
        terms: weights, and arguments, of reward terms, as for ``read_terms``. A term of weight 0 is measured alone.

    Returns:
        ``score`` (the weighted sum), each term's value, and ``pred``, the answer as text: verl averages the numbers and
        uses ``pred`` for its majority votes. With the term ``explanation`` also ``eea``, ``epc`` and ``fcr``.
    """
    parts: dict[str, float] = {}
    score = 0.0
    for name, (weight, arguments) in read_terms(terms).items():
        if name == "faithfulness" and extra_info and "senses" in extra_info:
            arguments = {"senses": extra_info["senses"], **arguments}
        if name == "explanation" and reward_router_address and "verifier" in arguments:
            from verl_omni.rewards.model_verifier import served

            arguments["verifier"] = served(arguments["verifier"], reward_router_address)
        parts[name] = TERMS[name](solution_str, ground_truth, **arguments)
        score += weight * parts[name]
        if name == "explanation":
            parts |= coherence(solution_str, ground_truth, **arguments)
    return {"score": score, **parts, "pred": extract_answer(solution_str)}
