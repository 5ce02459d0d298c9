"""R1-Omni's two verifiable rewards (arXiv 2503.05379, section 3): accuracy and format. Pure Python.

In any verl project, without anything else of this package::

    reward.custom_reward_function.path=pkg://verl_omni.rewards reward.custom_reward_function.name=compute_score

``verl_omni.rewards.manager`` is the verl reward manager; it is not imported here, so that this stays light.
"""

import re
from types import ModuleType
from typing import Any

# Time is linear in the text: what follows a tag on its line is looked at once, and what stands between explanation and
# answer is looked for alone.
ANSWER = re.compile(r"<answer>(.*)")
BETWEEN = re.compile(r"</think>\s*<answer>")


def extract_answer(text: str) -> str:
    """Return the first single-line ``<answer>…</answer>``'s content, else the whole text, stripped.

    A tag whose content holds a newline is no answer tag to the original.
    """
    answers = (rest.partition("</answer>")[0] for rest in ANSWER.findall(text) if "</answer>" in rest)
    return next(answers, text).strip()


def accuracy_reward(completion: str, label: str) -> float:
    """Return 1.0 if the completion's answer equals ``label`` exactly, else 0.0.

    ``label`` may be bare (``happy``) or tagged (``<answer> happy </answer>``), as R1-Omni's own data has it.

    R1-Omni also asks math_verify first, which makes "class 2" right for the label "emotion 2"; that has no meaning
    for emotion words and is left out.

    >>> accuracy_reward("<think>He smiles.</think>\\n<answer>happy</answer>", "happy")
    1.0
    """
    return float(extract_answer(completion) == extract_answer(label))


def format_reward(completion: str) -> float:
    """Return 1.0 if the whole completion is ``<think>…</think>`` then ``<answer>…</answer>``, else 0.0.

    A trailing newline is already a miss, as in the original.

    >>> format_reward("<answer>happy</answer>")
    0.0
    """
    start, end = len("<think>"), len(completion) - len("</answer>")
    outer = completion.startswith("<think>") and completion.endswith("</answer>")
    return float(outer and BETWEEN.search(completion, start, end) is not None)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    accuracy_weight: float = 1.0,
    format_weight: float = 1.0,
) -> dict[str, float | str]:
    """Score one completion, by the contract of verl's ``custom_reward_function``.

    Args:
        data_source: the row's corpus; not used, the rule is the same for all.
        solution_str: the decoded completion without special tokens.
        ground_truth: the label.
        extra_info: the row's extra information; not used.
        accuracy_weight, format_weight: R1-Omni adds both rewards unweighted.

    Returns:
        ``score`` (the weighted sum), ``accuracy``, ``format``, and ``pred``, the answer as text: verl averages the
        numbers and uses ``pred`` for its majority votes.
    """
    accuracy = accuracy_reward(solution_str, ground_truth)
    form = format_reward(solution_str)
    return {
        "score": accuracy_weight * accuracy + format_weight * form,
        "accuracy": accuracy,
        "format": form,
        "pred": extract_answer(solution_str),
    }


def register_manager(reward_manager: ModuleType) -> None:
    """Register ``accuracy_format`` with ``verl.experimental.reward_loop.reward_manager``: its module does so itself."""
    import verl_omni.rewards.manager  # noqa: F401
