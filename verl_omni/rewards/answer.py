"""The parts of a completion, found in time linear in its length; and the paper's two rewards on them."""

import re

# Linear in the text, also on repeated tags: each line is looked at once, from its first tag on (the group is atomic),
# and what stands between explanation and answer is looked for alone.
ANSWER = re.compile(r"^(?>.*?<answer>)(.*?)</answer>", re.MULTILINE)
BETWEEN = re.compile(r"</think>\s*<answer>")


def extract_answer(text: str) -> str:
    """Return the first single-line ``<answer>…</answer>``'s content, else the whole text, stripped.

    A tag whose content holds a newline is no answer tag to the original.
    """
    match = ANSWER.search(text)
    return (match[1] if match else text).strip()


def extract_explanation(completion: str) -> str:
    """Return the text within the first ``<think>…</think>``, stripped; empty if there is none."""
    text, closed, _ = completion.partition("<think>")[2].partition("</think>")
    return text.strip() if closed else ""


def accuracy_reward(completion: str, label: str) -> float:
    """Return 1.0 if the completion's answer equals ``label`` (bare or tagged, as R1-Omni's data has it), else 0.0.

    R1-Omni also asks math_verify first, which makes "class 2" right for the label "emotion 2"; that has no meaning
    for emotion words and is left out.

    >>> accuracy_reward("<think>He smiles.</think>\\n<answer>happy</answer>", "happy")
    1.0
    """
    return float(extract_answer(completion) == extract_answer(label))


def format_reward(completion: str, label: str = "") -> float:
    """Return 1.0 if the whole completion is ``<think>…</think>`` then ``<answer>…</answer>``, else 0.0.

    A trailing newline is already a miss, as in the original.

    >>> format_reward("<answer>happy</answer>")
    0.0
    """
    start, end = len("<think>"), len(completion) - len("</answer>")
    outer = completion.startswith("<think>") and completion.endswith("</answer>")
    return float(outer and BETWEEN.search(completion, start, end) is not None)
