"""Does the explanation support the label? After ERV (Rha et al., AAAI 2026, arXiv 2510.23506; Rhatanii/ERV).

A *verifier* tells, sentence by sentence, which emotions an explanation expresses. ``by_rules`` is the default and pure
Python; ``verl_omni.rewards.model_verifier`` asks a sequence classifier, as ERV does.
"""

import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

from verl_omni.rewards.answer import extract_answer, extract_explanation
from verl_omni.rewards.lexicon import READ, emotion_of, emotions_in

Verifier = Callable[[list[str]], list[list[str]]]  # sentences -> the emotions of each, strongest first
NEUTRAL = "neutral"
# A sentence that takes back the one before it is read together with it.
END = re.compile(r"(?<=[.!?])\s+(?!(?:but|however|yet|nevertheless)\b)|\n+", re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text.

    >>> sentences("She seems happy. However, her voice is sad. She cries.")
    ['She seems happy. However, her voice is sad.', 'She cries.']
    """
    return [part.strip() for part in END.split(text[:READ]) if part.strip()]


def by_rules(texts: list[str]) -> list[list[str]]:
    """The emotions that each sentence asserts by its words; a sentence that names none is neutral."""
    return [emotions_in(text) or [NEUTRAL] for text in texts]


@lru_cache(maxsize=8)  # the reward and its metrics ask for one completion in turn, and a verifier may be a model
def expressed(completion: str, verifier: Verifier | str) -> list[list[str]]:
    """The emotions of each sentence of a completion's explanation."""
    if isinstance(verifier, str):
        from verl_omni.rewards.model_verifier import load

        verifier = load(verifier)
    return verifier(sentences(extract_explanation(completion)))


def explanation_reward(completion: str, label: str, verifier: Verifier | str = by_rules) -> float:
    """Return the share of the explanation's sentences that support the label (ERV's explanation reward), 0 to 1.

    For a neutral label all sentences count, for any other those that express an emotion: a sentence that only describes
    is no evidence against it. Without an explanation it is 0.

    Args:
        verifier: ``by_rules``, or a directory of a sequence classifier (or any function of that signature).

    >>> explanation_reward("<think>He frowns. His voice is angry. He seems sad.</think><answer>sad</answer>", "angry")
    0.5
    """
    wanted = emotion_of(extract_answer(label))
    found = expressed(completion, verifier)
    counted = found if wanted == NEUTRAL else [emotions for emotions in found if emotions != [NEUTRAL]]
    return sum(wanted in emotions for emotions in counted) / len(counted) if counted else 0.0


def explained_emotion(completion: str, verifier: Verifier | str = by_rules) -> str:
    """Return the one emotion that the explanation as a whole expresses; empty without an explanation.

    It is the emotion of most sentences, of several the one that comes last, where explanations conclude; neutral only
    if there is no other. (ERV's evaluation asks GPT for that word.)

    >>> explained_emotion("<think>He seems sad at first, but he is furious.</think><answer>sad</answer>")
    'angry'
    """
    found = expressed(completion, verifier)
    votes = Counter(emotion for emotions in reversed(found) for emotion in reversed(emotions))
    return max(votes, key=lambda emotion: (emotion != NEUTRAL, votes[emotion]), default="")


def coherence(completion: str, label: str, verifier: Verifier | str = by_rules) -> dict[str, float]:
    """Return ``eea``, ``epc`` and ``fcr`` of one completion, 0 or 1 each: their means are ERV's three metrics.

    ``eea``: the explanation's emotion is the label; ``epc``: it is the answer; ``fcr``: it is both.
    """
    explained = explained_emotion(completion, verifier)
    label, answer = emotion_of(extract_answer(label)), emotion_of(extract_answer(completion))
    return {
        "eea": float(explained == label),
        "epc": float(explained == answer != ""),
        "fcr": float(explained == label == answer),
    }
