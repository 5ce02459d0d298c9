"""What a set of answers is worth: WAR, UAR, recall by class, confusion, intervals, format, consistency.

A prediction is the text that the accuracy reward compares with the label, so WAR here is the mean accuracy reward of
verl's validation. A row without an answer (its media did not decode) counts as a miss, and so does an answer outside
the corpus's label set; both are listed.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap
from sklearn.metrics import confusion_matrix

from verl_omni.evaluation.ablation import NORMAL, VARIANTS
from verl_omni.evaluation.consistency import consistency, explanation
from verl_omni.evaluation.results import Answer
from verl_omni.labels import label_set
from verl_omni.metrics import uar, war
from verl_omni.rewards import extract_answer, format_reward

OTHER = "(other)"
RESAMPLES = 2000


@dataclass(frozen=True)
class Score:
    """Scores of one model on one corpus in one variant; shares and recalls in %.

    Attributes:
        rows: Number of rows, answered or not.
        war_interval, uar_interval: 95 % percentile bootstrap over rows; None below two rows.
        recall: Recall by class present in the ground truth.
        support: Rows by class.
        labels: Rows and columns of `confusion`; the last, `(other)`, takes answers outside the set and failures.
        confusion: Counts ``[true][predicted]``.
        format_rate: Share of rows in the format `<think>…</think> <answer>…</answer>`.
        out_of_set: Answers outside the label set, with their number.
        failures: Rows without an answer: (id, reason).
        truncated: Answers cut off at the token limit.
        consistency: Rows whose explanation is `consistent`, `contradicting` or `silent`.
    """

    model: str
    data_source: str
    variant: str
    rows: int
    war: float
    uar: float
    war_interval: tuple[float, float] | None
    uar_interval: tuple[float, float] | None
    recall: dict[str, float]
    support: dict[str, int]
    labels: list[str]
    confusion: list[list[int]]
    format_rate: float
    out_of_set: dict[str, int]
    failures: list[tuple[str, str]]
    truncated: int
    consistency: dict[str, int]


def prediction(answer: Answer) -> str:
    """The emotion an answer gives; empty for a row that failed."""
    return "" if answer.error else extract_answer(answer.completion)


def score(answers: list[Answer]) -> Score:
    """Score the answers of one model, corpus and variant.

    Raises:
        ValueError: No answers, or answers of several models, corpora or variants.
    """
    groups = {(answer.model, answer.data_source, answer.variant) for answer in answers}
    if len(groups) != 1:
        raise ValueError(f"one model, corpus and variant expected, {sorted(groups)} found")
    ((model, data_source, variant),) = groups
    truth = [answer.label for answer in answers]
    predicted = [prediction(answer) for answer in answers]
    stated = label_set(data_source, set(truth))
    known = [*stated, *sorted(set(truth) - set(stated))]  # all there is for a corpus without a label set
    failures = [(answer.id, answer.error) for answer in answers if answer.error]
    answered = [(answer, word) for answer, word in zip(answers, predicted, strict=True) if not answer.error]
    columns = [*known, OTHER]
    matrix = confusion_matrix(truth, [word if word in known else OTHER for word in predicted], labels=columns)
    support = Counter(truth)
    war_interval, uar_interval = intervals(truth, predicted)
    return Score(
        model=model,
        data_source=data_source,
        variant=variant,
        rows=len(answers),
        war=war(truth, predicted),
        uar=uar(truth, predicted),
        war_interval=war_interval,
        uar_interval=uar_interval,
        recall={word: 100.0 * matrix[i, i] / support[word] for i, word in enumerate(known) if support[word]},
        support={word: support[word] for word in known if support[word]},
        labels=columns,
        confusion=matrix.tolist(),
        format_rate=100.0 * sum(format_reward(answer.completion) for answer in answers) / len(answers),
        out_of_set=dict(Counter(word for _, word in answered if word not in known).most_common()),
        failures=failures,
        truncated=sum(answer.finish_reason == "length" for answer in answers),
        consistency=dict(Counter(consistency(explanation(answer.completion), word) for answer, word in answered)),
    )


def intervals(
    truth: list[str], predicted: list[str], seed: int = 0
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """95 % percentile bootstrap intervals of WAR and UAR over rows, in %.

    A resample's UAR averages the classes that it holds, as UAR itself does.
    """
    if len(truth) < 2:
        return None, None
    classes = np.array(sorted(set(truth)))
    hit = np.array([t == p for t, p in zip(truth, predicted, strict=True)], dtype=float)
    which = np.searchsorted(classes, truth).astype(float)

    def resampled_war(hit: np.ndarray, which: np.ndarray, axis: int) -> np.ndarray:
        return 100.0 * hit.mean(axis=axis)

    def resampled_uar(hit: np.ndarray, which: np.ndarray, axis: int) -> np.ndarray:
        totals = np.stack([(which == c).sum(axis=axis) for c in range(len(classes))])
        hits = np.stack([(hit * (which == c)).sum(axis=axis) for c in range(len(classes))])
        recalls = np.divide(hits, totals, out=np.zeros_like(hits), where=totals > 0)
        return 100.0 * recalls.sum(axis=0) / (totals > 0).sum(axis=0)

    def interval(statistic) -> tuple[float, float]:
        result = bootstrap(
            (hit, which),
            statistic,
            n_resamples=RESAMPLES,
            batch=200,
            paired=True,
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        return float(result.low), float(result.high)

    return interval(resampled_war), interval(resampled_uar)


def score_all(answers: list[Answer]) -> list[Score]:
    """A score for every model, corpus and variant, in order of first appearance (variants in their own order)."""
    groups: dict[tuple[str, str, int], list[Answer]] = {}
    for answer in answers:
        groups.setdefault((answer.model, answer.data_source, VARIANTS.index(answer.variant)), []).append(answer)
    order = list(dict.fromkeys((model, source) for model, source, _ in groups))
    return [score(groups[key]) for key in sorted(groups, key=lambda key: (order.index(key[:2]), key[2]))]


def changed_share(answers: list[Answer], variant: str) -> tuple[int, int]:
    """How many rows' answer changes in a variant.

    Args:
        answers: Answers of one model and corpus in all variants.
        variant: `video_blanked` or `audio_muted`.

    Returns:
        Changed rows and compared rows: those that were answered in both variants.
    """
    normal = {answer.id: prediction(answer) for answer in answers if answer.variant == NORMAL and not answer.error}
    other = {answer.id: prediction(answer) for answer in answers if answer.variant == variant and not answer.error}
    both = normal.keys() & other.keys()
    return sum(normal[row] != other[row] for row in both), len(both)
