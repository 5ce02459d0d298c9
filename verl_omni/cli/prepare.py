"""``python -m verl_omni prepare CORPUS``: from a corpus's published layout to rows for verl."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from pathlib import Path

from rich.table import Table

from verl_omni.cli.tables import make_table, show
from verl_omni.corpora import crema_d, dfew, emer, explanations, mafw, meld, mer_unibench, original, ravdess, table
from verl_omni.corpora.listing import Clip, CorpusError, Listing
from verl_omni.data.check import NO_AUDIO_POLICIES, Row, settle_silent, silent_sources
from verl_omni.data.files import write_rows
from verl_omni.data.row import rl_row, sft_row
from verl_omni.labels import LABELS, VOCABULARIES, canonical, normalize

CORPORA = (dfew, mafw, ravdess, crema_d, meld, emer, mer_unibench, original)
READERS: dict[str, Callable[..., Listing]] = {corpus.__name__.split(".")[-1]: corpus.read for corpus in CORPORA}
READERS["csv"] = table.read
OF_READERS = ("fold", "actors", "annotations")  # options that some readers have

EPILOG = """writes to --out:
  train.parquet, test.parquet  prompts and labels, for GRPO and evaluation
  train_sft.parquet            the same clips with answers: explanations (emer, original, --explanations) or bare labels
  missing.txt                  annotated clips that are not on disk
  silent.txt                   clips whose sound track is missing, empty or damaged, see --no-audio
layouts: see the docstrings of verl_omni.corpora"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("corpus", choices=[*READERS, "demo"], help="original: R1-Omni's JSON; csv: clips of your own; demo: made now")
    add("--root", type=Path, help="the corpus's top folder (original, csv: the one paths start from)")
    add("--out", type=Path, required=True, help="folder for the rows files")
    add("--fold", type=int, help="dfew 1-5 (default 2), mafw 1-5 (1), crema_d 1-5 (1), ravdess 1-6 (none: all is test)")
    add("--actors", type=int, nargs="+", help="ravdess, crema_d: the actors to test, in place of a fold")
    add("--annotations", type=Path, help="original, csv, mer_unibench: the file; emer: one of several")
    words = "words of the labels: R1-Omni's authors' (default) or the corpus's own; original and csv keep the file's"
    add("--vocabulary", choices=list(VOCABULARIES), help=words)
    add("--explanations", metavar="rules|FILE", help="explain the training clips by rule, or by a file of id and text")
    silent = "rows of clips without a whole sound: without it (default), with silence as the original, or none"
    add("--no-audio", choices=NO_AUDIO_POLICIES[1:], default="video_only", help=silent)
    add("--partial", action="store_true", help="accept missing clips and counts other than the published ones")
    add("--original-json", action="store_true", help="also write each split in the original R1-Omni's JSON format")
    add("--model", type=Path, help="demo: folder for a tiny random HumanOmni that fits the corpus")
    add("--seed", type=int, default=0, help="demo: seed of the corpus and the model (default 0)")


def run(args: argparse.Namespace) -> int:
    if args.corpus == "demo":
        from verl_omni.corpora.demo import build_demo

        build_demo(args.out, seed=args.seed)
        if args.model:
            from verl_omni.models.humanomni.tiny import build_tiny  # takes seconds

            build_tiny(args.model, seed=args.seed)
        return 0
    listing = read_corpus(args)
    show(counts_table(listing))
    problems = listing.problems()
    for problem in problems:
        print(f"{'warning' if args.partial else 'error'}: {problem}", file=sys.stderr)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "missing.txt").write_text("".join(f"{clip.media}\n" for clip in listing.missing), encoding="utf-8")
    if problems and not args.partial:
        print(
            f"error: no rows written; {args.out / 'missing.txt'} lists the missing files. "
            "Complete the corpus, or accept it as it is with --partial",
            file=sys.stderr,
        )
        return 1
    silent = silent_sources(str(clip.media.resolve()) for split in listing.splits() for clip in listing.present(split))
    (args.out / "silent.txt").write_text("".join(sorted(f"{file}\n" for _, file in silent)), encoding="utf-8")
    if silent:
        print(f"{len(silent)} clips have no whole sound, rows: {args.no_audio}; listed in {args.out / 'silent.txt'}")
    write_splits(listing, args.out, args.vocabulary, silent, args.no_audio)
    if args.original_json:
        for split in listing.splits():
            present = listing.present(split)
            original.write(present, args.out / f"{split}.json", args.root)
            print(f"{args.out / f'{split}.json'}: {len(present)} clips, paths relative to {args.root}")
    return 0


def read_corpus(args: argparse.Namespace) -> Listing:
    """The corpus's clips, with labels and explanations as the options say.

    Raises:
        CorpusError: The corpus is not as published, or an option is missing or not this corpus's.
    """
    reader = READERS[args.corpus]
    taken = signature(reader).parameters
    options = {name: getattr(args, name) for name in OF_READERS if getattr(args, name) is not None}
    needed = {name for name in taken if taken[name].default is taken[name].empty} - options.keys() - {"root"}
    if args.root is None or needed:
        raise CorpusError(f"--{'root' if args.root is None else needed.pop()} is missing for {args.corpus}")
    if foreign := options.keys() - taken.keys():
        raise CorpusError(f"--{foreign.pop()}: {args.corpus} has none; leave the option out")
    listing = reader(root=args.root, **options)
    clips = [replace(clip, label=reworded(clip, args.corpus, args.vocabulary)) for clip in listing.clips]
    if args.explanations:
        clips = explanations.explain(clips, args.explanations)
    return replace(listing, clips=clips)


def reworded(clip: Clip, corpus: str, vocabulary: str | None) -> str:
    """The clip's label in a vocabulary; without one, as its reader gave it: the authors' word, or the file's."""
    source = clip.corpus or corpus
    if vocabulary is None or (vocabulary == "corpus" and source not in LABELS):
        return clip.label
    known = source in LABELS and canonical(clip.label) in LABELS[source]
    return normalize(clip.label, source, vocabulary) if known else canonical(clip.label)


def counts_table(listing: Listing) -> Table:
    """Clips by split and class, beside the published number."""

    def row(split: str) -> list[str]:
        counts = Counter(clip.label for clip in listing.of(split)).most_common()
        classes = ", ".join(f"{label} {count}" for label, count in counts)
        gone = sum(clip.split == split for clip in listing.missing)
        return [split, str(listing.published.get(split, "not stated")), str(len(listing.of(split))), str(gone), classes]

    columns = ("split", "published", "annotated", "missing", "classes")
    title = f"{listing.data_source}, fold {listing.fold}" if listing.fold else listing.data_source
    return make_table(columns, map(row, listing.splits()), left=("split", "classes"), title=title)


def write_splits(listing: Listing, out: Path, vocabulary: str | None, silent: set[tuple], no_audio: str) -> None:
    """Write the rows of every clip on disk, and say how many each file has."""
    stated = vocabulary or ("as found" if listing.data_source not in LABELS else "authors")
    about = {"vocabulary": stated} | ({"fold": listing.fold} if listing.fold else {})
    kinds = (("", rl_row, "prompt"), ("_sft", sft_row, "messages"))
    for split in filter(listing.present, listing.splits()):
        clips = listing.present(split)
        for suffix, make_row, key in kinds if split == "train" else kinds[:1]:
            path = out / f"{split}{suffix}.parquet"
            made = (make_row(clip, listing.data_source, index, **about) for index, clip in enumerate(clips))
            rows = [Row(data, str(path), index, key) for index, data in enumerate(made)]
            settle_silent(rows, silent, no_audio)
            write_rows([row.data for row in rows], path)
            print(f"{path}: {len(rows)} rows")
