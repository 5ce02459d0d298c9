"""The figures of the emotion recognition literature, in %.

WAR and UAR; EEA, EPC and FCR of explanations (ERV, arXiv 2510.23506); the emotion-wheel score, hit rate and weighted F1
of an open vocabulary (MER-UniBench, arXiv 2501.16566).
"""

from collections.abc import Sequence
from statistics import harmonic_mean

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, recall_score

from verl_omni.errors import InputError
from verl_omni.rewards.lexicon import emotion_of
from verl_omni.rewards.wheel import emotion_list, sectors, set_scores


def war(labels: Sequence[str], predictions: Sequence[str]) -> float:
    """Weighted average recall in %: the share of rows predicted right.

    >>> war(["happy", "happy", "sad", "fear"], ["happy", "sad", "sad", "Fear"])
    50.0
    """
    return 100 * float(accuracy_score(*_as_text(labels, predictions)))


def uar(labels: Sequence[str], predictions: Sequence[str]) -> float:
    """Unweighted average recall in %: the recall of each class, averaged over the classes present in ``labels``.

    A prediction outside the label set is a miss.

    >>> uar(["happy", "happy", "sad"], ["happy", "joy", "sad"])
    75.0
    """
    truth, answers = _as_text(labels, predictions)
    return 100 * float(recall_score(truth, answers, labels=sorted(set(truth)), average="macro", zero_division=0))


def eea(labels: Sequence[str], explained: Sequence[str]) -> float:
    """Explanation emotion accuracy in %: the share of explanations whose emotion is the label.

    Labels may have any spelling; ``explained`` is ``explained_emotion`` (``verl_omni.rewards.explanation``) of each, or
    empty, which is nobody's emotion, not an empty answer's either.
    """
    return war([emotion_of(label) for label in labels], [emotion or "(no explanation)" for emotion in explained])


def epc(predictions: Sequence[str], explained: Sequence[str]) -> float:
    """Explanation-prediction consistency in %: the share of explanations whose emotion is the answer, right or not."""
    return eea(predictions, explained)


def fcr(labels: Sequence[str], predictions: Sequence[str], explained: Sequence[str]) -> float:
    """Faithful consistency rate in %: the share of rows where explanation and answer are both right.

    >>> fcr(["happy", "sad"], ["happy", "sad"], ["happy", "angry"])
    50.0
    """
    both = [word if emotion_of(word) == emotion else "" for word, emotion in zip(predictions, explained, strict=True)]
    return war([emotion_of(label) for label in labels], [emotion_of(word) for word in both])


def wheel_score(labels: Sequence[str], predictions: Sequence[str], level: int = 1) -> dict[str, float]:
    """MER-UniBench's emotion-wheel score in %: ``f``, ``precision`` and ``recall``, averaged over the five wheels.

    In each wheel, precision and recall of the sets are averaged over rows, and ``f`` is the harmonic mean of the two
    averages. A row whose label the wheel does not have is left out of it; ``InputError`` if that leaves none.

    Args:
        labels, predictions: lists of emotions as text ("happy, excited").
        level: 1 for the wheels' inner ring, 2 for the middle one.
    """
    averages = [np.mean(rows, axis=0).tolist() for rows in _scores_by_wheel(labels, predictions, level)]
    wheels = [(harmonic_mean(row), *row) for row in averages]
    return dict(zip(("f", "precision", "recall"), (100 * np.mean(wheels, axis=0)).tolist(), strict=True))


def hit_rate(labels: Sequence[str], predictions: Sequence[str]) -> float:
    """MER-UniBench's hit rate for basic emotions in %: rows whose answers have the label's sector among theirs.

    Averaged over the five wheels; rows as for ``wheel_score``.
    """
    wheels = _scores_by_wheel(labels, predictions, level=1)
    return 100 * float(np.mean([np.mean([recall > 0 for _, recall in rows]) for rows in wheels]))


def _scores_by_wheel(labels: Sequence[str], predictions: Sequence[str], level: int) -> list[list[tuple[float, float]]]:
    rows = [
        set_scores(*(sectors(emotion_list(text), level) for text in pair))
        for pair in zip(*_as_text(labels, predictions), strict=True)
    ]
    wheels = [[row for row in wheel if row] for wheel in zip(*rows, strict=True)]
    if not any(wheels):
        raise InputError(f"no label of {sorted(set(labels))[:5]} is in an emotion wheel")
    return [wheel for wheel in wheels if wheel]


def weighted_f1(labels: Sequence[str], predictions: Sequence[str]) -> float:
    """F1 of each class present in ``labels``, weighted by its rows, in %.

    MER-UniBench's primary figure for sentiment (``positive``, ``negative``), without rows whose annotated valence is 0.

    >>> weighted_f1(["positive", "positive", "negative"], ["positive", "negative", "negative"])
    66.66666666666666
    """
    return 100 * float(f1_score(*_as_text(labels, predictions), average="weighted", zero_division=0))


def _as_text(labels: Sequence[str], predictions: Sequence[str]) -> tuple[list[str], list[str]]:
    if len(labels) != len(predictions) or len(labels) == 0:
        raise ValueError(f"{len(labels)} labels and {len(predictions)} predictions; give as many of each, at least one")
    # scikit-learn refuses a mix of types, and an answer such as 1 may be read from JSON as a number.
    return [str(label) for label in labels], [str(prediction) for prediction in predictions]
