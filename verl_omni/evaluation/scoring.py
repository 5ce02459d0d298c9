"""What a set of answers is worth: WAR, UAR, recall by class, confusion, intervals, format; what its explanations are.

A prediction is the text that the accuracy reward compares with the label, so WAR here is the mean accuracy reward of
verl's validation. A row without an answer (its media did not decode) counts as a miss, and so does an answer outside
the corpus's label set; both are listed.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from verl_omni.evaluation.results import AUDIO_MUTED, NORMAL, VARIANTS, VIDEO_BLANKED, Answer
from verl_omni.labels import canonical, label_set
from verl_omni.metrics import eea, epc, fcr, hit_rate, uar, war, wheel_score
from verl_omni.rewards import extract_answer, extract_explanation, format_reward
from verl_omni.rewards.explanation import explained_emotion, sentences
from verl_omni.rewards.lexicon import EMOTIONS, emotion_of, emotions_in, senses_in
from verl_omni.rewards.wheel import emotion_list, sectors

OTHER = "(other)"
TAKEN = {VIDEO_BLANKED: "sight", AUDIO_MUTED: "sound"}
RESAMPLES = 2000
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Score:
    """Scores of one model on one corpus in one variant; shares and recalls in %.

    Intervals are 95 % percentile bootstraps over rows, or over actors where rows name them (clips of one actor resemble
    each other); None below two. EEA, EPC, FCR: ``verl_omni.metrics``, by the rules of ``verl_omni.rewards.lexicon``.
    """

    model: str
    data_source: str
    variant: str
    rows: int  # answered or not
    war: float
    uar: float
    war_interval: Interval
    uar_interval: Interval
    recall: dict[str, float]  # by class present in the ground truth
    support: dict[str, int]  # rows by class
    labels: list[str]  # rows and columns of `confusion`; the last takes answers outside the set, and failures
    confusion: list[list[int]]  # counts [true][predicted]
    format_rate: float  # rows in the format <think>…</think> <answer>…</answer>
    out_of_set: dict[str, int]  # answers outside the label set, with their number
    failures: list[tuple[str, str]]  # (id, reason)
    truncated: int  # cut off at the token limit
    consistency: dict[str, int]  # rows whose explanation is consistent, contradicting or silent
    eea: float
    epc: float
    fcr: float
    mentions: dict[str, float]  # share of the explanations that mention a sense
    hallucinations: int  # rows whose explanation mentions a sense that the model was not given
    wheel: dict[str, float] | None  # f, precision, recall, hit_rate; None if no label is in an emotion wheel
    normalized: dict[str, int]  # words that were counted as another one, if that was asked for, with their number


def explanation(answer: Answer) -> str:
    """The text of an answer's explanation; empty for a row that failed."""
    return extract_explanation(answer.completion)


def prediction(answer: Answer) -> str:
    """The emotion an answer gives; empty for a row that failed."""
    return "" if answer.error else extract_answer(answer.completion)


def consistency(think: str, answer: str) -> str:
    """Whether an explanation asserts the answered emotion: ``consistent`` (it may assert others too),
    ``contradicting`` if it asserts others alone, ``silent`` if none, or if there is no answer within the vocabulary.

    >>> consistency("Her eyebrows show surprise.", "surprise"), consistency("Her eyebrows show surprise.", "happy")
    ('consistent', 'contradicting')
    """
    named = {emotion for sentence in sentences(think) for emotion in emotions_in(sentence)}
    answered = emotion_of(answer)
    if not named or answered not in EMOTIONS:
        return "silent"
    return "consistent" if answered in named else "contradicting"


def classes_of(data_source: str, labels: list[str]) -> list[str]:
    """The corpus's label set, and what else occurs as a label; none if labels list several (an open vocabulary)."""
    if any(len(emotion_list(label)) > 1 for label in labels):
        return []
    stated = label_set(data_source, set(labels))
    return [*stated, *sorted(set(labels) - set(stated))]


def score(answers: list[Answer], normalize: bool = False) -> Score:
    """Score the answers of one model, corpus and variant; ``ValueError`` if they are of several, or none.

    Args:
        normalize: Whether all words for a class (``verl_omni.labels.ALIASES``) count as it, in labels and answers.
    """
    groups = {(answer.model, answer.data_source, answer.variant) for answer in answers}
    if len(groups) != 1:
        raise ValueError(f"one model, corpus and variant expected, {sorted(groups)} found")
    model, data_source, variant = groups.pop()
    truth = [answer.label for answer in answers]
    predicted = [prediction(answer) for answer in answers]
    normalized: Counter[str] = Counter()
    if normalize:
        normalized.update(f"{word} as {canonical(word)}" for word in truth + predicted if canonical(word) != word)
        truth, predicted = [canonical(word) for word in truth], [canonical(word) for word in predicted]
    known = classes_of(data_source, truth)
    answered = [(answer, word) for answer, word in zip(answers, predicted, strict=True) if not answer.error]
    explained = [explained_emotion(answer.completion) for answer in answers]
    mentioned = [senses_in(explanation(answer)) for answer in answers]
    in_set = [[word if word in known else OTHER for word in words] for words in (truth, predicted)]
    matrix = confusion_matrix(*in_set, labels=[*known, OTHER])
    support = {word: count for word in known if (count := truth.count(word))}
    in_wheel = any(any(sectors(emotion_list(label))) for label in set(truth))
    return Score(
        *(model, data_source, variant, len(answers), war(truth, predicted), uar(truth, predicted)),
        *intervals(truth, predicted, [answer.actor or answer.id for answer in answers]),
        recall={word: 100.0 * matrix[i, i] / support[word] for i, word in enumerate(known) if word in support},
        support=support,
        labels=[*known, OTHER],
        confusion=matrix.tolist(),
        format_rate=100.0 * sum(format_reward(answer.completion) for answer in answers) / len(answers),
        out_of_set=dict(Counter(word for _, word in answered if word not in known).most_common()),
        failures=[(answer.id, answer.error) for answer in answers if answer.error],
        truncated=sum(answer.finish_reason == "length" for answer in answers),
        consistency=dict(Counter(consistency(explanation(answer), word) for answer, word in answered)),
        eea=eea(truth, explained),
        epc=epc(predicted, explained),
        fcr=fcr(truth, predicted, explained),
        mentions={s: 100.0 * sum(s in senses for senses in mentioned) / len(answers) for s in ("sight", "sound")},
        hallucinations=sum(bool(said - senses_given(a)) for said, a in zip(mentioned, answers, strict=True)),
        wheel=wheel_score(truth, predicted) | {"hit_rate": hit_rate(truth, predicted)} if in_wheel else None,
        normalized=dict(normalized.most_common()),
    )


def senses_given(answer: Answer) -> set[str]:
    """Of ``sight`` and ``sound``, what the model was given: the row's media, but for what the variant took away."""
    given = {"sight": answer.videos, "sound": answer.audios}
    return {sense for sense, media in given.items() if media} - {TAKEN.get(answer.variant)}


def intervals(truth: list[str], predicted: list[str], groups: list[str] | None = None) -> tuple[Interval, Interval]:
    """95 % percentile bootstrap intervals of WAR and UAR, in %; ``groups``, by default the rows, are drawn as one.

    A resample's UAR averages the classes that it holds, as UAR itself does.
    """
    classes, which = np.unique(truth, return_inverse=True)
    names, group = np.unique(groups or np.arange(len(truth)).astype(str), return_inverse=True)
    if len(names) < 2:
        return None, None
    hit = np.array([t == p for t, p in zip(truth, predicted, strict=True)])
    totals, hits = np.zeros((2, len(names), len(classes)))
    np.add.at(totals, (group, which), 1)
    np.add.at(hits, (group, which), hit)
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    totals, hits = drawn @ totals, drawn @ hits  # [resamples, classes]
    recalls = np.divide(hits, totals, out=np.full_like(hits, np.nan), where=totals > 0)
    wars, uars = 100 * hits.sum(axis=1) / totals.sum(axis=1), 100 * np.nanmean(recalls, axis=1)
    (war_low, war_high), (uar_low, uar_high) = np.percentile([wars, uars], [2.5, 97.5], axis=1).T.tolist()
    return (war_low, war_high), (uar_low, uar_high)


@dataclass(frozen=True)
class Difference:
    """How much better one model is than another on the same rows."""

    model: str
    other: str
    data_source: str
    rows: int  # that both models have
    groups: int  # the actors (or rows, where none are named) that they come from
    war: float  # difference of WAR in points, `model` less `other`
    p_value: float  # two-sided, of a permutation test that exchanges the two models' answers actor by actor


def difference(model: list[Answer], other: list[Answer]) -> Difference:
    """Compare two models by their answers to rows of one corpus, of which some are the same."""
    theirs = {answer.id: prediction(answer) == answer.label for answer in other}
    both = [answer for answer in model if answer.id in theirs]
    gains: Counter[str] = Counter()
    for answer in both:
        gains[answer.actor or answer.id] += int(prediction(answer) == answer.label) - int(theirs[answer.id])
    gain = np.array(list(gains.values()))
    signs = np.random.default_rng(0).choice([-1, 1], size=(9999, len(gain)))
    as_large = (np.abs(signs @ gain) >= abs(gain.sum())).sum()
    points, p_value = 100.0 * gain.sum() / len(both), (as_large + 1) / (9999 + 1)
    return Difference(model[0].model, other[0].model, model[0].data_source, len(both), len(gain), points, p_value)


def score_all(answers: list[Answer], normalize: bool = False) -> list[Score]:
    """A score for every model, corpus and variant, in order of first appearance (variants in their own order)."""
    by_variant = [grouped(mine, "variant") for mine in grouped(answers, "model", "data_source").values()]
    return [score(mine[variant], normalize) for mine in by_variant for variant in VARIANTS if variant in mine]


def grouped(answers: Iterable[Answer], *fields: str) -> dict[Any, list[Answer]]:
    """Answers by the value of a field, or by the tuple of several, in order of first appearance."""
    groups: dict[Any, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(attrgetter(*fields)(answer), []).append(answer)
    return groups


def changed_share(answers: list[Answer], variant: str, part: Callable[[Answer], str] = prediction) -> tuple[int, int]:
    """In how many rows of one model and corpus a ``part`` of the answer changes in a variant, of those with both."""
    normal, other = (
        {answer.id: part(answer) for answer in answers if answer.variant == which and not answer.error}
        for which in (NORMAL, variant)
    )
    both = normal.keys() & other.keys()
    return sum(normal[row] != other[row] for row in both), len(both)
