"""WAR and UAR, the two figures of the emotion recognition literature, in %."""

from collections.abc import Sequence

from sklearn.metrics import accuracy_score, recall_score


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


def _as_text(labels: Sequence[str], predictions: Sequence[str]) -> tuple[list[str], list[str]]:
    if len(labels) != len(predictions) or len(labels) == 0:
        raise ValueError(f"{len(labels)} labels and {len(predictions)} predictions; give as many of each, at least one")
    # scikit-learn refuses a mix of types, and an answer such as 1 may be read from JSON as a number.
    return [str(label) for label in labels], [str(prediction) for prediction in predictions]
