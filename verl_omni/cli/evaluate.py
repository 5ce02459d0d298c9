"""``python -m verl_omni evaluate MODEL --data ROWS``: answer every row with vLLM, and measure WAR and UAR."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from verl_omni.checkpoints import model_directory
from verl_omni.cli.tables import make_table, show
from verl_omni.data.check import MODALITIES, NO_AUDIO_POLICIES
from verl_omni.data.files import read_rows
from verl_omni.evaluation.results import AUDIO_MUTED, NORMAL, VIDEO_BLANKED, Answer
from verl_omni.evaluation.scoring import Score, changed_share, score_all
from verl_omni.prompts import QUESTIONS

PRESETS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("presets.yaml").read_bytes())
EPILOG = """writes to --out:
  NAME.jsonl         one line per answer; run the same command again to go on after an interruption
  NAME.scores.json   WAR, UAR, recalls, confusion, intervals, by corpus and variant"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=Path, help="self-contained model directory (see `convert`), or a training run's")
    add("--data", nargs="+", type=Path, required=True, metavar="ROWS", help="rows files (see `prepare`)")
    add("--out", type=Path, default=Path("results"), help="folder for the results (default results)")
    add("--name", help="the model's name in results and report (default: its directory's)")
    modalities = "which of each row's media the model gets (default both), for one trained with +data.modalities"
    add("--modalities", nargs="+", choices=MODALITIES, default=MODALITIES, help=modalities)
    add("--preset", choices=list(PRESETS), help="settings that go together; each also has its flag")
    add = parser.add_argument_group("the question").add_argument
    question = f"ask this in place of the rows' own: {', '.join(QUESTIONS)}, or a text"
    add("--question", metavar="NAME|TEXT", help=question)
    add("--options", action=argparse.BooleanOptionalAction, help="list the labels to choose from in it")
    add = parser.add_argument_group("scoring").add_argument
    add("--normalize", action="store_true", help="other words for a class count as it (verl_omni.labels.ALIASES)")
    add("--trained-folds", nargs="+", metavar="CORPUS=FOLD", help="what the model was trained on; warns of rows in it")
    add = parser.add_argument_group("which sense does the model use? (each answers all rows once more)").add_argument
    add("--blank-video", action="store_true", help="also with every frame in the mean colour")
    add("--mute-audio", action="store_true", help="also with silence for sound")
    add("--modality-ablation", action="store_true", help="both of the above")
    add = parser.add_argument_group("decoding (greedy)").add_argument
    add("--max-tokens", type=int, help="length limit of an answer (default 512)")
    penalty = "on new tokens; default 1, as in training; the original's inference took 1.1 from its checkpoints"
    add("--repetition-penalty", type=float, help=penalty)
    silent = "what a clip without sound is: a failed row (default), a row without sound, one with silence, or none"
    add("--no-audio", choices=NO_AUDIO_POLICIES, help=silent)
    add("--aspect-ratio", choices=["pad", "squash"], help="default: the model's own, pad as in training")
    add("--use-audio-in-video", action="store_true", help="Qwen2.5-Omni: each video and its sound as one stream")
    add = parser.add_argument_group("vLLM").add_argument
    add("--max-model-len", type=int, help="prompt and answer in tokens (default 2048)")
    add("--tensor-parallel-size", type=int, default=1)
    add("--gpu-memory-utilization", type=float, default=0.9)
    add("--dtype", help="default: float32 on a CPU, elsewhere vLLM's: bfloat16 for a float32 model")


def run(args: argparse.Namespace) -> int:
    from verl_omni.evaluation.answering import Settings, evaluate
    from verl_omni.platforms.cpu import default_dtype

    model = model_directory(args.model.resolve())
    name = args.name or args.model.resolve().name
    given = {name: value for name, value in vars(args).items() if value is not None}
    chosen = {"dtype": default_dtype()} | PRESETS.get(args.preset, {}) | given
    taken = {VIDEO_BLANKED: args.blank_video, AUDIO_MUTED: args.mute_audio}
    out = args.out / f"{name}.jsonl"
    for warning in fold_warnings(args.data, chosen.get("trained_folds", [])):
        print(f"warning: {warning}", file=sys.stderr)
    answers = evaluate(
        *(model, args.data, out, name),
        [NORMAL, *(variant for variant, wanted in taken.items() if wanted or args.modality_ablation)],
        Settings(**{field.name: chosen[field.name] for field in fields(Settings) if field.name in chosen}),
        {name: chosen[name] for name in ("tensor_parallel_size", "gpu_memory_utilization")},
        chosen.get("question"),
        chosen.get("options", False),
    )
    scores = score_all(answers, args.normalize)
    scores_file = out.with_suffix(".scores.json")
    scores_file.write_text(json.dumps([vars(score) for score in scores], ensure_ascii=False, indent=2) + "\n")
    show(scores_table(scores, answers), explanations_table(scores))
    for score in scores:
        for words, count in score.normalized.items():
            print(f"normalized ({score.data_source}, {score.variant}): {words}: {count} rows")
        for row, reason in score.failures:
            print(f"failed ({score.variant}), counted as a miss: {row}: {reason}", file=sys.stderr)
    print(f"{out}\n{scores_file}")
    return 0


def fold_warnings(files: list[Path], trained_folds: list[str]) -> Iterator[str]:
    """A sentence for each corpus of which rows are in the folds (``CORPUS=FOLD``) that the model was trained on."""
    rows = [(row.get("data_source"), row.get("extra_info") or {}) for file in files for row in read_rows(file)]
    for corpus, fold in (item.split("=", 1) for item in trained_folds):
        known = [about for source, about in rows if source == corpus and about.get("fold")]
        # A fold's test clips are training clips of every other fold.
        if seen := [about for about in known if (str(about["fold"]) != fold) == (about["split"] == "test")]:
            yield (
                f"{corpus}: {len(seen)} rows (fold {seen[0]['fold']}, {seen[0]['split']}) are in the training set of "
                f"fold {fold}, which this model was trained on; prepare the corpus with --fold {fold}"
            )


def scores_table(scores: list[Score], answers: list[Answer]) -> Table:
    """Scores by corpus and variant."""

    def row(score: Score) -> list[str]:
        mine = [answer for answer in answers if answer.data_source == score.data_source]
        differing, compared = changed_share(mine, score.variant) if score.variant != NORMAL else (0, 0)
        return [
            *(score.data_source, score.variant, str(score.rows)),
            with_interval(score.war, score.war_interval),
            with_interval(score.uar, score.uar_interval),
            f"{score.format_rate:.1f}",
            *map(str, (sum(score.out_of_set.values()), score.truncated, len(score.failures))),
            f"{100 * differing / compared:.1f}" if compared else "",
        ]

    return make_table(
        ("corpus", "variant", "rows", "WAR", "UAR", "format", "other", "cut", "failed", "changed"),
        map(row, scores),
        left=("corpus", "variant"),
        title=f"{scores[0].model}, in % (below: 95 % bootstrap interval)",
        caption="other: answers outside the label set; cut: at the token limit; changed: against variant normal",
    )


def explanations_table(scores: list[Score]) -> Table:
    """What the explanations are worth, and the answers as an open vocabulary."""

    def row(score: Score) -> list[str]:
        figures = [score.eea, score.epc, score.fcr, *score.mentions.values()]
        wheel = [score.wheel["f"], score.wheel["hit_rate"]] if score.wheel else []
        before, after = ([f"{figure:.1f}" for figure in some] for some in (figures, wheel))
        return [score.data_source, score.variant, *before, str(score.hallucinations), *after]

    return make_table(
        ("corpus", "variant", "EEA", "EPC", "FCR", "sight", "sound", "hallucinations", "wheel F", "hit rate"),
        map(row, scores),
        left=("corpus", "variant"),
        title="explanations, and answers by emotion wheels, in %",
        caption="EEA, EPC, FCR: the explanation's emotion is the label, the answer, both; sight, sound: explanations "
        "that mention them; hallucinations: rows whose explanation mentions a sense that the model was not given",
    )


def with_interval(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.2f}" + (f"\n{interval[0]:.1f}-{interval[1]:.1f}" if interval else "")
