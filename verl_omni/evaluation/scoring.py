"""What a set of answers is worth: WAR, UAR, recall by class, confusion, intervals, format; what its explanations are.

A prediction is the text that the accuracy reward compares with the label, so WAR here is the mean accuracy reward of
verl's validation. A row without an answer (its media did not decode) counts as a miss, and so does an answer outside
the corpus's label set; both are listed.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap
from sklearn.metrics import confusion_matrix

from verl_omni.evaluation.ablation import AUDIO_MUTED, NORMAL, VARIANTS, VIDEO_BLANKED
from verl_omni.evaluation.consistency import consistency
from verl_omni.evaluation.results import Answer
from verl_omni.labels import label_set
from verl_omni.metrics import eea, epc, fcr, hit_rate, uar, war, wheel_score
from verl_omni.rewards import extract_answer, extract_explanation, format_reward
from verl_omni.rewards.explanation import explained_emotion
from verl_omni.rewards.lexicon import senses_in
from verl_omni.rewards.wheel import emotion_list, sectors

OTHER = "(other)"
TAKEN = {VIDEO_BLANKED: "sight", AUDIO_MUTED: "sound"}
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
        eea, epc, fcr: Of the explanations (`verl_omni.metrics`), by the rules of `verl_omni.rewards.lexicon`.
        mentions: Share of the explanations that mention `sight`, and `sound`.
        hallucinations: Rows whose explanation mentions a sense that the model was not given.
        wheel: Emotion-wheel score `f`, `precision`, `recall`, and `hit_rate`; None if no label is in a wheel.
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
    eea: float
    epc: float
    fcr: float
    mentions: dict[str, float]
    hallucinations: int
    wheel: dict[str, float] | None


def explanation(answer: Answer) -> str:
    """The text of an answer's explanation; empty for a row that failed."""
    return extract_explanation(answer.completion)


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
    if any(len(emotion_list(label)) > 1 for label in truth):
        known = []  # an open vocabulary: labels that list several emotions are no classes
    failures = [(answer.id, answer.error) for answer in answers if answer.error]
    answered = [(answer, word) for answer, word in zip(answers, predicted, strict=True) if not answer.error]
    columns = [*known, OTHER]
    explained = [explained_emotion(answer.completion) for answer in answers]
    in_set = [[word if word in known else OTHER for word in words] for words in (truth, predicted)]
    matrix = confusion_matrix(*in_set, labels=columns)
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
        consistency=dict(Counter(consistency(explanation(answer), word) for answer, word in answered)),
        eea=eea(truth, explained),
        epc=epc(predicted, explained),
        fcr=fcr(truth, predicted, explained),
        wheel=_wheel(truth, predicted),
        **_senses(answers),
    )


def senses_given(answer: Answer) -> set[str]:
    """Of `sight` and `sound`, what the model was given: the row's media, but for what the variant took away."""
    given = {"sight": bool(answer.videos), "sound": bool(answer.audios)}
    return {sense for sense, there in given.items() if there} - {TAKEN.get(answer.variant)}


def _senses(answers: list[Answer]) -> dict:
    mentioned = [senses_in(explanation(answer)) for answer in answers]
    return {
        "mentions": {
            sense: 100.0 * sum(sense in senses for senses in mentioned) / len(answers) for sense in ("sight", "sound")
        },
        "hallucinations": sum(
            bool(senses - senses_given(answer)) for senses, answer in zip(mentioned, answers, strict=True)
        ),
    }


def _wheel(truth: list[str], predicted: list[str]) -> dict[str, float] | None:
    if not any(any(sectors(emotion_list(label))) for label in set(truth)):
        return None
    return {**wheel_score(truth, predicted), "hit_rate": hit_rate(truth, predicted)}


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


def changed_share(answers: list[Answer], variant: str, part: Callable[[Answer], str] = prediction) -> tuple[int, int]:
    """How many rows' answer changes in a variant.

    Args:
        answers: Answers of one model and corpus in all variants.
        variant: `video_blanked` or `audio_muted`.
        part: What of an answer to compare; its emotion by default.

    Returns:
        Changed rows and compared rows: those that were answered in both variants.
    """
    normal = {answer.id: part(answer) for answer in answers if answer.variant == NORMAL and not answer.error}
    other = {answer.id: part(answer) for answer in answers if answer.variant == variant and not answer.error}
    both = normal.keys() & other.keys()
    return sum(normal[row] != other[row] for row in both), len(both)
