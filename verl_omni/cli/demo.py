"""``python -m verl_omni demo``: the whole study on the demo corpus, on a CPU."""

import argparse
import signal
import sys
import time
from pathlib import Path

from verl_omni.cli.tables import show
from verl_omni.study.demo import FAMILIES, Demo, run_stages, summary
from verl_omni.study.stages import StageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--family", choices=list(FAMILIES), default="humanomni", help="model family (default humanomni)")
    add("--out", type=Path, help="folder (default outputs/demo, and the family if it is another)")
    add("--seed", type=int, default=0, help="seed of everything (default 0)")
    recipes = "explanation, dapo, dr_grpo, gspo, rloo, no_think"
    variants = f"GRPO once more with each of these recipes on top, from the same cold start: {recipes}"
    add("--variants", nargs="+", default=[], metavar="RECIPE", help=variants)
    add("overrides", nargs="*", help="Hydra overrides of the GRPO stages, as trainer.n_gpus_per_node=2")


def run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    out = args.out or Path("outputs/demo" if args.family == "humanomni" else f"outputs/demo_{args.family}")
    demo = Demo(out.resolve(), args.seed, args.overrides, args.variants, args.family)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C does, end the stage's process too
    try:
        run_stages(demo)
    except StageError as error:
        print(f"error: {error}\n(the same command goes on where this stopped)", file=sys.stderr)
        return 1
    show(summary(demo))
    print(f"report: {demo.out / 'report.html'}\n{(time.monotonic() - started) / 60:.1f} minutes")
    return 0
