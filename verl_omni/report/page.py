"""The report page: what the template shows, gathered from results files and logs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import jinja2
import numpy as np

from verl_omni.evaluation.ablation import AUDIO_MUTED, NORMAL, VIDEO_BLANKED
from verl_omni.evaluation.consistency import consistency
from verl_omni.evaluation.results import Answer, ResultsError, read_answers
from verl_omni.evaluation.scoring import (
    Difference,
    Score,
    changed_share,
    difference,
    explanation,
    prediction,
    score,
    score_all,
)
from verl_omni.report import clips, curves

# arXiv 2503.05379, table 2: model -> corpus -> (WAR, UAR) in %.
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = json.loads(
    Path(__file__).with_name("published.json").read_text(encoding="utf-8")
)
TITLES = {"demo": "Demo corpus", "crema_d": "CREMA-D"} | {
    name: name.upper() for name in ("dfew", "mafw", "ravdess", "emer", "meld")
}
SENSES = {VIDEO_BLANKED: "picture", AUDIO_MUTED: "sound"}


@dataclass(frozen=True)
class ModelAnswer:
    """One model's answer to one clip, with what it says when a sense is taken away."""

    model: str
    right: bool
    answer: str
    think: str
    consistency: str
    error: str
    truncated: bool
    without: dict[str, str]  # "picture" or "sound" -> the answer given without it

    @property
    def sensitive(self) -> list[str]:
        return [sense for sense, answer in self.without.items() if answer != self.answer]


@dataclass(frozen=True)
class Card:
    """One clip of the browsable part."""

    id: str
    corpus: str
    label: str
    question: str
    view: clips.ClipView
    answers: list[ModelAnswer]


def write_report(
    results: Sequence[str | Path], logs: Sequence[str | Path], out: str | Path, max_clips: int = 60, title: str = ""
) -> int:
    """Write the page; returns the number of clips shown.

    Args:
        results: Results files of ``python -m verl_omni evaluate``.
        logs: Training logs, each named by its file name.
        out: The HTML file.
        max_clips: Number of clips to show, spread evenly over the rows.
        title: Heading of the page.

    Raises:
        ResultsError: A results file cannot be read, or none holds an answer.
        LogError: A log holds no training step.
    """
    answers = gather(results)
    scores = score_all(answers)
    cards = make_cards(answers, max_clips)
    metrics = {name_of(path, logs): curves.read_log(path) for path in logs}
    charts = [curves.chart(panel) for panel in curves.panels(metrics)]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("verl_omni.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["title_of"] = lambda corpus: TITLES.get(corpus, corpus)
    models = list(dict.fromkeys(one.model for one in scores))
    page = environment.get_template("page.html.jinja").render(
        title=title or "Emotion recognition from picture and sound",
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        models=models,
        colours={name: i % 8 for i, name in enumerate(dict.fromkeys([*models, *metrics]))},
        table=results_table(scores),
        published=PUBLISHED,
        scores=[one for one in scores if one.variant == NORMAL],
        heat=heat,
        differences=differences(answers),
        modality=modality_rows(answers),
        charts=charts,
        chart_size=(curves.WIDTH, curves.HEIGHT, curves.LEFT, curves.RIGHT, curves.TOP, curves.BOTTOM),
        cards=cards,
        rows=len({(answer.data_source, answer.id) for answer in answers}),
        corpora=list(dict.fromkeys(card.corpus for card in cards)),
        labels=sorted({card.label for card in cards}),
    )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(page, encoding="utf-8")
    return len(cards)


def gather(results: Sequence[str | Path]) -> list[Answer]:
    """The answers of all files; two answers of one model to the same row are an error."""
    answers: dict[tuple, Answer] = {}
    for path in results:
        for answer in read_answers(path):
            key = (answer.model, answer.data_source, answer.id, answer.variant)
            if key in answers:
                raise ResultsError(
                    f"{path}: a second {answer.variant} answer of {answer.model} to {answer.id}; "
                    "give each model a name of its own (`evaluate --name`), and each file once"
                )
            answers[key] = answer
    if not answers:
        raise ResultsError(f"no answers in {', '.join(map(str, results))}; run `python -m verl_omni evaluate` first")
    return list(answers.values())


def name_of(path: str | Path, among: Sequence[str | Path]) -> str:
    """A log's name: its file name, or with its folder where two logs have the same file name."""
    path = Path(path)
    twins = sum(Path(other).stem == path.stem for other in among)
    return path.stem if twins == 1 else f"{path.parent.name}/{path.stem}"


def results_table(scores: list[Score]) -> dict:
    """Measured scores by model and corpus, and the corpora that either table has, in the paper's order."""
    measured: dict[str, dict[str, Score]] = {}
    for one in scores:
        if one.variant == NORMAL:
            measured.setdefault(one.model, {})[one.data_source] = one
    named = dict.fromkeys(one.data_source for one in scores)
    corpora = [*(corpus for corpus in named if corpus not in PUBLISHED["R1-Omni"]), *PUBLISHED["R1-Omni"]]
    return {"measured": measured, "corpora": corpora}


def heat(of: Score) -> list[dict]:
    """Rows of a confusion matrix, with each cell's share of its true class."""
    rows = []
    for label, counts in zip(of.labels[:-1], of.confusion, strict=False):
        total = sum(counts)
        if total:
            cells = [(column, n, n / total) for column, n in zip(of.labels, counts, strict=True)]
            rows.append({"label": label, "total": total, "cells": cells, "recall": of.recall[label]})
    return rows


def differences(answers: list[Answer]) -> list[Difference]:
    """Each model against the one before it, corpus by corpus, on the rows that both answered."""
    by_corpus: dict[str, dict[str, list[Answer]]] = {}
    for answer in answers:
        if answer.variant == NORMAL:
            by_corpus.setdefault(answer.data_source, {}).setdefault(answer.model, []).append(answer)
    pairs = [pair for models in by_corpus.values() for pair in pairwise(models.values())]
    shared = [pair for pair in pairs if {answer.id for answer in pair[0]} & {answer.id for answer in pair[1]}]
    return [difference(model, other) for other, model in shared]


def modality_rows(answers: list[Answer]) -> list[dict]:
    """For each model, corpus and sense taken away: WAR with and without it on the same rows, and what changes."""
    rows = []
    for model, corpus in dict.fromkeys((answer.model, answer.data_source) for answer in answers):
        mine = [answer for answer in answers if (answer.model, answer.data_source) == (model, corpus)]
        for variant, sense in SENSES.items():
            without = [answer for answer in mine if answer.variant == variant]
            ids = {answer.id for answer in without}
            both = [answer for answer in mine if answer.variant == NORMAL and answer.id in ids]
            if both and without:
                changed, compared = changed_share(mine, variant)
                row = {"model": model, "corpus": corpus, "sense": sense, "changed": changed, "compared": compared}
                row["rewritten"] = changed_share(mine, variant, explanation)[0]
                blind = score(without)
                row |= {"war": score(both).war, "war_without": blind.war, "hallucinations": blind.hallucinations}
                rows.append(row)
    return rows


def make_cards(answers: list[Answer], max_clips: int) -> list[Card]:
    """Cards for up to ``max_clips`` rows, spread evenly over all rows in the order of the results."""
    rows: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        rows.setdefault((answer.data_source, answer.id), []).append(answer)
    keys = list(rows)
    chosen = np.unique(np.linspace(0, len(keys) - 1, min(max_clips, len(keys))).round().astype(int))
    return [_card(rows[keys[index]]) for index in chosen]


def _card(answers: list[Answer]) -> Card:
    first = answers[0]
    models = dict.fromkeys(answer.model for answer in answers)
    return Card(
        id=first.id,
        corpus=first.data_source,
        label=first.label,
        question=first.question,
        view=clips.view(first.videos, first.audios),
        answers=[_model_answer([answer for answer in answers if answer.model == model]) for model in models],
    )


def _model_answer(answers: list[Answer]) -> ModelAnswer:
    by_variant = {answer.variant: answer for answer in answers}
    shown = by_variant.get(NORMAL, answers[0])
    word = prediction(shown)
    think = explanation(shown)
    return ModelAnswer(
        model=shown.model,
        right=word == shown.label and not shown.error,
        answer=word,
        think=think,
        consistency=consistency(think, word) if think else "",
        error=shown.error,
        truncated=shown.finish_reason == "length",
        without={
            sense: prediction(by_variant[variant])
            for variant, sense in SENSES.items()
            if variant in by_variant and not by_variant[variant].error
        },
    )
