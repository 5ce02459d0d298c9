"""``python -m verl_omni convert CHECKPOINT``: between original R1-Omni checkpoints and self-contained directories."""

import argparse
from pathlib import Path

EPILOG = """examples:
  python -m verl_omni convert HumanOmni-0.5B --vision siglip-base-patch16-224 --audio whisper-large-v3 \\
      --bert bert-base-uncased --out humanomni-0.5b
  python -m verl_omni convert humanomni-0.5b --back --out original-again"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", type=Path, help="original checkpoint (with --back: a converted directory)")
    add("--out", type=Path, required=True, help="directory to write; must be empty or not exist")
    add("--vision", type=Path, help="SigLIP's directory (default: the one that config.json names)")
    add("--audio", type=Path, help="Whisper's directory (default: the one that config.json names)")
    add("--bert", type=Path, help="BERT's directory: configuration and tokenizer")
    towers = "where the weights of SigLIP and Whisper come from (default: directories, as the original loads them)"
    add("--towers", choices=["directories", "checkpoint"], default="directories", help=towers)
    add("--back", action="store_true", help="write the original layout of a converted directory")


def run(args: argparse.Namespace) -> int:
    import verl_omni.models  # noqa: F401  (registers HumanOmni with transformers' Auto classes)
    from verl_omni.models.humanomni.conversion import convert, convert_back

    if args.back:
        convert_back(args.checkpoint, args.out)
    else:
        convert(args.checkpoint, args.out, args.vision, args.audio, args.bert, args.towers)
    print(args.out)
    return 0
