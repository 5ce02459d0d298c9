"""``python -m verl_omni report RESULTS… --out report.html``: the study on one self-contained page."""

import argparse
from pathlib import Path

from verl_omni.report.page import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", type=Path, help="results files that `evaluate` wrote (.jsonl)")
    parser.add_argument(
        "--logs",
        nargs="+",
        type=Path,
        default=[],
        metavar="LOG",
        help="training logs: verl's `file` tracker (VERL_FILE_LOGGER_PATH) or its console output",
    )
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default report.html)")
    parser.add_argument("--clips", type=int, default=60, help="clips to browse, spread over all rows (default 60)")
    parser.add_argument("--title", default="", help="heading of the page")


def run(args: argparse.Namespace) -> int:
    shown = write_report(args.results, args.logs, args.out, args.clips, args.title)
    print(f"{args.out}: {shown} clips, {args.out.stat().st_size / 1e6:.1f} MB")
    return 0
