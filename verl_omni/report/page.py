"""The report page: what the template shows, gathered from results files and logs."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import jinja2
import numpy as np

from verl_omni.evaluation import scoring
from verl_omni.evaluation.results import AUDIO_MUTED, NORMAL, VIDEO_BLANKED, Answer, ResultsError, read_answers
from verl_omni.evaluation.scoring import consistency, explanation, grouped, prediction
from verl_omni.report import clips, curves

# arXiv 2503.05379, table 2: model -> corpus -> (WAR, UAR) in %.
PUBLISHED: dict[str, dict[str, list[float]]] = json.loads(Path(__file__).with_name("published.json").read_bytes())
TITLES = {"demo": "Demo corpus", "crema_d": "CREMA-D"}
TITLES |= {name: name.upper() for name in ("dfew", "mafw", "ravdess", "emer", "meld")}
SENSES = {VIDEO_BLANKED: "picture", AUDIO_MUTED: "sound"}


def write_report(results: Sequence[Path], logs: Sequence[Path], out: Path, max_clips: int = 60, title: str = "") -> int:
    """Write the page; returns the number of clips shown. ``ResultsError`` or ``LogError`` if a file is neither."""
    answers = gather(results)
    scores = scoring.score_all(answers)
    cards = make_cards(answers, max_clips)
    shared = Counter(path.stem for path in logs)  # the name of a log, with its folder where several have it
    names = [path.stem if shared[path.stem] == 1 else f"{path.parent.name}/{path.stem}" for path in logs]
    metrics = {name: curves.read_log(path) for name, path in zip(names, logs, strict=True)}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("verl_omni.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["title_of"] = lambda corpus: TITLES.get(corpus, corpus)
    models = list(dict.fromkeys(one.model for one in scores))
    colours = {name: i % 8 for i, name in enumerate(dict.fromkeys([*models, *metrics]))}
    normal = [one for one in scores if one.variant == NORMAL]
    measured = {one.model: {same.data_source: same for same in normal if same.model == one.model} for one in normal}
    ours = dict.fromkeys(one.data_source for one in scores if one.data_source not in PUBLISHED["R1-Omni"])
    page = environment.get_template("page.html.jinja").render(
        title=title or "Emotion recognition from picture and sound",
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        models=models,
        colours=colours,
        measured=measured,
        columns=[*ours, *PUBLISHED["R1-Omni"]],
        published=PUBLISHED,
        scores=normal,
        differences=differences(answers),
        modality=modality_rows(answers),
        charts=curves.charts(metrics, colours),
        cards=cards,
        rows=len({(answer.data_source, answer.id) for answer in answers}),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return len(cards)


def gather(results: Sequence[Path]) -> list[Answer]:
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


def differences(answers: list[Answer]) -> list[scoring.Difference]:
    """Each model against the one before it, corpus by corpus, on the rows that both answered."""
    corpora = grouped((answer for answer in answers if answer.variant == NORMAL), "data_source").values()
    pairs = [pair for mine in corpora for pair in pairwise(grouped(mine, "model").values())]
    return [scoring.difference(model, other) for other, model in pairs if {a.id for a in other} & {a.id for a in model}]


def modality_rows(answers: list[Answer]) -> list[dict]:
    """For each model, corpus and sense taken away: WAR with and without it on the same rows, and what changes."""
    rows = []
    for (model, corpus), mine in grouped(answers, "model", "data_source").items():
        by_variant = grouped(mine, "variant")
        for variant, sense in SENSES.items():
            without = by_variant.get(variant, [])
            ids = {answer.id for answer in without}
            if both := [answer for answer in by_variant.get(NORMAL, []) if answer.id in ids]:
                changed, compared = scoring.changed_share(mine, variant)
                rewritten, _ = scoring.changed_share(mine, variant, explanation)
                blind = scoring.score(without)
                row = {"model": model, "corpus": corpus, "sense": sense, "changed": changed, "compared": compared}
                row |= {"rewritten": rewritten, "hallucinations": blind.hallucinations}
                rows.append(row | {"war": scoring.score(both).war, "war_without": blind.war})
    return rows


def make_cards(answers: list[Answer], max_clips: int) -> list[dict]:
    """Cards for up to ``max_clips`` rows, spread evenly over all rows in the order of the results."""
    rows = list(grouped(answers, "data_source", "id").values())
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(max_clips, len(rows))).round().astype(int))
    cards = []
    for mine in (rows[index] for index in chosen):
        card = {"id": mine[0].id, "corpus": mine[0].data_source, "label": mine[0].label}
        card["view"] = clips.view(mine[0].videos, mine[0].audios)
        cards.append(card | {"answers": [_model_answer(answers) for answers in grouped(mine, "model").values()]})
    return cards


def _model_answer(answers: list[Answer]) -> dict:
    """One model's answer to one clip, with what it says when a sense is taken away."""
    by_variant = {answer.variant: answer for answer in answers}
    shown = by_variant.get(NORMAL, answers[0])
    word, think = prediction(shown), explanation(shown)
    taken = {sense: by_variant[variant] for variant, sense in SENSES.items() if variant in by_variant}
    without = {sense: prediction(answer) for sense, answer in taken.items() if not answer.error}
    return {
        "model": shown.model,
        "right": word == shown.label and not shown.error,
        "answer": word,
        "think": think,
        "consistency": consistency(think, word) if think else "",
        "error": shown.error,
        "truncated": shown.finish_reason == "length",
        "without": without,
        "sensitive": [sense for sense, other in without.items() if other != word],
    }
