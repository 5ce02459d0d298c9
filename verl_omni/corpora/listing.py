"""What a corpus on disk says of itself, checked against what was published about it."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path


class CorpusError(ValueError):
    """A corpus that is not laid out as published; the message names the path, what was expected and the remedy."""


@dataclass(frozen=True)
class Clip:
    """One annotated clip.

    Attributes:
        id: The corpus's own name of the clip, unique within it.
        media: Video file with sound; it may be missing on disk.
        label: Emotion word of `verl_omni.labels`.
        split: `train` or `test`.
        reasoning: Text of the explanation, for a cold start; empty where the corpus has none.
    """

    id: str
    media: Path
    label: str
    split: str
    reasoning: str = ""


@dataclass
class Listing:
    """All clips a corpus annotates, with the published number of clips by split."""

    data_source: str
    clips: list[Clip]
    published: dict[str, int] = field(default_factory=dict)

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

    def class_counts(self, split: str) -> Counter[str]:
        return Counter(clip.label for clip in self.of(split))

    def problems(self) -> list[str]:
        """One sentence for each way in which this tree differs from the published corpus."""
        found = []
        for split, expected in self.published.items():
            annotated = len(self.of(split))
            if annotated != expected:
                found.append(f"{self.data_source} {split}: {annotated} clips annotated, {expected} published")
        seen: dict[str, str] = {}
        for clip in self.clips:
            if clip.id in seen:
                found.append(f"{self.data_source}: clip {clip.id} is listed twice ({seen[clip.id]}, {clip.split})")
            seen[clip.id] = clip.split
        if self.missing:
            found.append(
                f"{self.data_source}: {len(self.missing)} of {len(self.clips)} media files are missing, "
                f"e.g. {self.missing[0].media}"
            )
        return found


def require(path: Path, what: str) -> Path:
    """`path` itself, or a `CorpusError` saying what was expected there."""
    if not path.exists():
        raise CorpusError(f"{path}: not found; expected {what}. Is --root the corpus's top folder?")
    return path


def require_fold(fold: int | None, corpus: str) -> int:
    """A fold number 1..5, 1 by default."""
    fold = 1 if fold is None else fold
    if not 1 <= fold <= 5:
        raise CorpusError(f"--fold {fold}: {corpus} has folds 1 to 5")
    return fold


def refuse_fold(fold: int | None, corpus: str) -> None:
    if fold is not None:
        raise CorpusError(f"--fold {fold}: {corpus} has no folds; leave the option out")
