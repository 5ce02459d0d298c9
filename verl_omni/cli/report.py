"""``python -m verl_omni report RESULTS… --out report.html``: the study on one self-contained page."""

import argparse
from pathlib import Path

from verl_omni.report.page import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("results", nargs="+", type=Path, help="results files that `evaluate` wrote (.jsonl)")
    logs = "training logs: verl's `file` tracker (VERL_FILE_LOGGER_PATH) or its console output"
    add("--logs", nargs="+", type=Path, default=[], metavar="LOG", help=logs)
    add("--out", type=Path, default=Path("report.html"), help="the page (default report.html)")
    add("--clips", type=int, default=60, help="clips to browse, spread over all rows (default 60)")
    add("--title", default="", help="heading of the page")


def run(args: argparse.Namespace) -> int:
    shown = write_report(args.results, args.logs, args.out, args.clips, args.title)
    print(f"{args.out}: {shown} clips, {args.out.stat().st_size / 1e6:.1f} MB")
    return 0
