"""``python -m verl_omni check``: can these rows be trained on? (``doctor`` looks at the installation.)"""

import argparse
import sys
from pathlib import Path

from verl_omni.checkpoints import model_directory
from verl_omni.data.check import MEDIA_CHECKS, NO_AUDIO_POLICIES, check_media, load_rows
from verl_omni.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rows", nargs="+", metavar="ROWS", help="rows files (parquet, json, jsonl)")
    frames = parser.add_mutually_exclusive_group()
    frames.add_argument("--num-frames", type=int, default=8, help="frames per video (default 8; HumanOmni-7B: 16)")
    frames.add_argument("--model", type=Path, help="whose frames the media cache gets (default: HumanOmni's, 224 px)")
    parser.add_argument("--media-check", choices=MEDIA_CHECKS, default="full", help="full decodes every file (default)")
    parser.add_argument("--no-audio", choices=NO_AUDIO_POLICIES, default="error", help="clips without a sound track")


def run(args: argparse.Namespace) -> int:
    num_frames, frame_format = args.num_frames, None
    if args.model:
        from verl_omni.models.families import family_in  # seconds, for this option alone

        model = model_directory(args.model)
        processor = family_in(model).load_processor(model)
        num_frames, frame_format = processor.num_frames, processor.frame_format()
    failed = False
    for file in args.rows:
        try:
            rows = load_rows([file])
            check_media(rows, num_frames, args.media_check, args.no_audio, frame_format)
            print(f"{file}: {len(rows)} rows, all usable")
        except (OSError, InputError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    return int(failed)
