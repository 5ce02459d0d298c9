"""`python -m verl_omni check`: can these rows be trained on? (`doctor` looks at the installation.)"""

import argparse
import sys

from verl_omni.data.check import MEDIA_CHECKS, NO_AUDIO_POLICIES, check_media, load_rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rows", nargs="+", metavar="ROWS", help="rows files (parquet, json, jsonl)")
    parser.add_argument("--num-frames", type=int, default=8, help="frames per video (default 8; HumanOmni-7B: 16)")
    parser.add_argument("--media-check", choices=MEDIA_CHECKS, default="full", help="full decodes every file (default)")
    parser.add_argument("--no-audio", choices=NO_AUDIO_POLICIES, default="error", help="clips without a sound track")


def run(args: argparse.Namespace) -> int:
    problems = []
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
