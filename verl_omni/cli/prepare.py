"""`python -m verl_omni prepare CORPUS`: from a corpus's published layout to rows for verl."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from verl_omni.corpora import dfew, emer, mafw, original, ravdess
from verl_omni.corpora.listing import CorpusError, Listing
from verl_omni.data.files import write_rows
from verl_omni.data.row import rl_row, sft_row

CORPORA = {"dfew": dfew.read, "mafw": mafw.read, "ravdess": ravdess.read, "emer": emer.read}

EPILOG = """writes to --out:
  train.parquet, test.parquet  prompts and labels, for GRPO and evaluation
  train_sft.parquet            the same clips with answers: explanations (emer, original) or bare labels
  missing.txt                  annotated clips that are not on disk
layouts: see the docstrings of verl_omni.corpora"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "corpus", choices=[*CORPORA, "original", "demo"], help="original: the R1-Omni JSON; demo: made on the spot"
    )
    parser.add_argument("--root", type=Path, help="the corpus's top folder (original: the folder its paths start from)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the rows files")
    parser.add_argument("--fold", type=int, help="dfew, mafw: fold 1 to 5 (default 1)")
    parser.add_argument("--annotations", type=Path, help="original: the JSON file with `video` and `conversations`")
    parser.add_argument(
        "--partial", action="store_true", help="accept missing clips and counts other than the published ones"
    )
    parser.add_argument(
        "--original-json", action="store_true", help="also write each split in the original R1-Omni's JSON format"
    )
    parser.add_argument("--model", type=Path, help="demo: folder for a tiny random HumanOmni that fits the corpus")
    parser.add_argument("--seed", type=int, default=0, help="demo: seed of the corpus and the model (default 0)")


def run(args: argparse.Namespace) -> int:
    if args.corpus == "demo":
        from verl_omni.corpora.demo import build_demo

        build_demo(args.out, seed=args.seed)
        if args.model:
            from verl_omni.models.humanomni.tiny import build_tiny

            build_tiny(args.model, seed=args.seed)
        return 0
    try:
        listing = read_corpus(args)
    except CorpusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console().print(counts_table(listing))
    problems = listing.problems()
    for problem in problems:
        print(f"{'warning' if args.partial else 'error'}: {problem}", file=sys.stderr)
    args.out.mkdir(parents=True, exist_ok=True)
    missing = "".join(f"{clip.media}\n" for clip in listing.missing)
    (args.out / "missing.txt").write_text(missing, encoding="utf-8")
    if problems and not args.partial:
        print(
            f"error: no rows written; {args.out / 'missing.txt'} lists the missing files. "
            "Complete the corpus, or accept it as it is with --partial",
            file=sys.stderr,
        )
        return 1
    for path, rows in write_splits(listing, args.out).items():
        print(f"{path}: {rows} rows")
    if args.original_json:
        for split in listing.splits():
            present = listing.present(split)
            original.write(present, args.out / f"{split}.json", args.root)
            print(f"{args.out / f'{split}.json'}: {len(present)} clips, paths relative to {args.root}")
    return 0


def read_corpus(args: argparse.Namespace) -> Listing:
    if args.root is None:
        raise CorpusError(f"--root is missing: the folder that holds {args.corpus}")
    if args.corpus == "original":
        if args.annotations is None:
            raise CorpusError("--annotations is missing: the JSON file with `video` and `conversations`")
        return original.read(args.annotations, args.root)
    return CORPORA[args.corpus](args.root, args.fold)


def counts_table(listing: Listing) -> Table:
    """Clips by split and class, beside the published number."""
    table = Table(title=listing.data_source)
    for column in ("split", "published", "annotated", "missing", "classes"):
        table.add_column(column, justify="left" if column in ("split", "classes") else "right", overflow="fold")
    for split in listing.splits():
        classes = ", ".join(f"{label} {count}" for label, count in listing.class_counts(split).most_common())
        published = str(listing.published.get(split, "not stated"))
        gone = str(sum(clip.split == split for clip in listing.missing))
        table.add_row(split, published, str(len(listing.of(split))), gone, classes)
    return table


def write_splits(listing: Listing, out: Path) -> dict[Path, int]:
    """Write the rows of every clip on disk; returns the number of rows by file."""
    written = {}
    for split in listing.splits():
        clips = listing.present(split)
        makers = {"": rl_row, "_sft": sft_row} if split == "train" else {"": rl_row}
        for suffix, make_row in makers.items():
            if clips:
                path = out / f"{split}{suffix}.parquet"
                write_rows([make_row(clip, listing.data_source, index) for index, clip in enumerate(clips)], path)
                written[path] = len(clips)
    return written
