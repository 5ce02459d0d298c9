"""Several emotions in one answer, from an open vocabulary, compared by emotion wheels.

After OV-MER (arXiv 2410.01495) and MER-UniBench (arXiv 2501.16566, zeroQiaoba/AffectGPT): each word is led back to the
labels of a wheel through word forms and synonyms, and each label to its sector. Two answers are as alike as their
sets of sectors, on average over five wheels. A word that a wheel does not have does not count there. The wheels are
data (``emotion_wheels.json``, with their source).
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import harmonic_mean

from verl_omni.rewards.answer import extract_answer
from verl_omni.rewards.lexicon import READ

SEPARATORS = re.compile(r"[\[\]'\",;\n]|\band\b")


def emotion_list(text: str) -> list[str]:
    """Return the emotions that an answer lists, in lower case.

    >>> emotion_list("['Happy', 'excited and proud']")
    ['happy', 'excited', 'proud']
    """
    return [word for part in SEPARATORS.split(text[:READ].lower()) if (word := part.strip())]


@lru_cache
def _wheels(level: int) -> list[dict[str, str]]:
    """Sector of each word in each wheel; of its labels that a wheel has, a word takes the first in the alphabet."""
    data = json.loads((Path(__file__).parent / "emotion_wheels.json").read_text(encoding="utf-8"))
    maps = []
    for tree in data["wheels"]:
        sector: dict[str, str] = {}
        for inner, branches in tree.items():
            sector[inner] = inner if level == 1 else min(branches)
            for middle, outer in branches.items():
                sector |= dict.fromkeys([middle, *outer], inner if level == 1 else middle)
        first = ((words, next((name for name in labels if name in sector), None)) for labels, words in data["words"])
        maps.append({word: sector[name] for words, name in first if name for word in words})
    return maps


def sectors(emotions: Iterable[str], level: int = 1) -> list[set[str]]:
    """Return the sectors of a set of emotions (in lower case) in each of the five wheels.

    Args:
        level: 1 for the inner ring of the wheels (MER-UniBench's primary one), 2 for the middle ring.
    """
    emotions = list(emotions)
    return [{wheel[word] for word in emotions if word in wheel} for wheel in _wheels(level)]


def set_scores(true: Sequence[set[str]], predicted: Sequence[set[str]]) -> list[tuple[float, float] | None]:
    """Return precision and recall of the predicted sectors in each wheel; None where the truth has no sector."""
    return [
        (len(want & got) / len(got) if got else 0.0, len(want & got) / len(want)) if want else None
        for want, got in zip(true, predicted, strict=True)
    ]


def wheel_reward(completion: str, label: str, level: int = 1) -> float:
    """Return F1 of the answer's set of emotions, on average over the wheels, 0 to 1.

    A label that no wheel has (neutral) must be answered word for word.

    >>> wheel_reward("<answer>joyful</answer>", "happy"), wheel_reward("<answer>joyful</answer>", "happy, furious")
    (1.0, 0.6666666666666666)
    """
    true, given = (emotion_list(extract_answer(text)) for text in (label, completion))
    scores = [score for score in set_scores(sectors(true, level), sectors(given, level)) if score]
    return sum(harmonic_mean(score) for score in scores) / len(scores) if scores else float(set(true) == set(given))


def hit_reward(completion: str, label: str) -> float:
    """Return the share of wheels in which the answer hits a sector of the label, 0 to 1: MER-UniBench's hit rate.

    A label that no wheel has is hit by itself.

    >>> hit_reward("<answer>sad, furious</answer>", "angry")
    1.0
    """
    true, given = (emotion_list(extract_answer(text)) for text in (label, completion))
    hits = [bool(want & got) for want, got in zip(sectors(true), sectors(given), strict=True) if want]
    return sum(hits) / len(hits) if hits else float(not set(true).isdisjoint(given))
