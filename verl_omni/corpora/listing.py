"""What a corpus on disk says of itself, checked against what was published about it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from verl_omni.data.files import read_rows
from verl_omni.errors import InputError


class CorpusError(InputError):
    """A corpus that is not laid out as published; the message names the path, what was expected and the remedy."""


@dataclass(frozen=True)
class Clip:
    """One annotated clip."""

    id: str  # the corpus's own name of the clip, unique within it
    media: Path  # video file with sound; it may be missing on disk
    label: str  # emotion word, of `verl_omni.labels.LABELS` where the corpus has a label set
    split: str  # train or test (MELD also has dev)
    reasoning: str = ""  # text of the explanation, for a cold start; empty where the corpus has none
    actor: str = ""  # who is seen, where the corpus says so; splits and intervals go by actor
    about: str = ""  # what the corpus knows apart from the emotion, in a sentence; for explanations by rule
    question: str = ""  # what the annotation file asks; empty for R1-Omni's question
    corpus: str = ""  # where the clip is from, if not from the listing's own corpus


@dataclass
class Listing:
    """All clips a corpus annotates, with the published number of clips by split."""

    data_source: str
    clips: list[Clip]
    published: dict[str, int] = field(default_factory=dict)
    fold: int | None = None

    def splits(self) -> list[str]:
        return list(dict.fromkeys([*self.published, *(clip.split for clip in self.clips)]))

    def of(self, split: str) -> list[Clip]:
        return [clip for clip in self.clips if clip.split == split]

    @cached_property
    def missing(self) -> list[Clip]:
        """Annotated clips whose media file is not on disk (or is empty)."""
        return [clip for clip in self.clips if not clip.media.is_file() or clip.media.stat().st_size == 0]

    def present(self, split: str) -> list[Clip]:
        """Clips of a split that are on disk."""
        gone = {clip.media for clip in self.missing}
        return [clip for clip in self.of(split) if clip.media not in gone]

    def problems(self) -> list[str]:
        """One sentence for each way in which this tree differs from the published corpus."""
        found = []
        for split, expected in self.published.items():
            if (annotated := len(self.of(split))) != expected:
                found.append(f"{self.data_source} {split}: {annotated} clips annotated, {expected} published")
        seen: dict[str, str] = {}
        for clip in self.clips:
            if clip.id in seen:
                found.append(f"{self.data_source}: clip {clip.id} is listed twice ({seen[clip.id]}, {clip.split})")
            seen[clip.id] = clip.split
        if self.missing:
            share = f"{len(self.missing)} of {len(self.clips)} media files"
            found.append(f"{self.data_source}: {share} are missing, e.g. {self.missing[0].media}")
        return found


def require(path: Path, what: str) -> Path:
    """``path`` itself, or a ``CorpusError`` saying what was expected there."""
    if not path.exists():
        raise CorpusError(f"{path}: not found; expected {what}. Is --root the corpus's top folder?")
    return path


def first_of(paths: Iterable[Path], what: str) -> Path:
    """The first of several places that exists; corpora were published in more than one layout."""
    paths = list(paths)
    return next((path for path in paths if path.exists()), None) or require(paths[0], what)


def require_fold(fold: int, corpus: str, folds: int = 5) -> None:
    if not 1 <= fold <= folds:
        raise CorpusError(f"--fold {fold}: {corpus} has folds 1 to {folds}")


def test_actors(corpus: str, folds: list[set[str]], fold: int | None, actors: list[int] | None) -> set[str]:
    """The actors whose clips are for testing: of a fold (1 is the first), in its place ``actors``, or all."""
    known = set().union(*folds)
    if fold is not None and actors is not None:
        raise CorpusError("give --fold or --actors, not both")
    if fold is not None:
        require_fold(fold, corpus, len(folds))
        return folds[fold - 1]
    named = known if actors is None else {f"{actor:02}" for actor in actors}
    if unknown := named - known:
        raise CorpusError(f"--actors {sorted(unknown)}: {corpus} has actors {min(known)} to {max(known)}")
    return named


def read_columns(path: Path, *columns: str) -> Iterator[list[str]]:
    """Yield these columns of a CSV file, row by row; ``CorpusError`` if it lacks one."""
    rows = read_rows(path)
    if not set(columns) <= rows[0].keys():
        raise CorpusError(f"{path}: columns {list(rows[0])} found, {', '.join(columns)} expected")
    for row in rows:
        yield [row[column] or "" for column in columns]
