"""EMER: written explanations of the emotion in MER clips, for the cold start.

Files, as published by their authors:

    final-EMER-reason.csv     `name,chinese,english`, 332 clips (EMER-V2: zeroQiaoba/AffectGPT, EMER/dataset-v2)
    label-disdim.csv          `name,discrete,…`, one of neutral, angry, happy, sad, worried, surprise (MER2024)
    video-labeled/NAME.mp4    the clips (MER2024, under licence)

EMER-V2 states no single label, so the answer is MER's discrete label of the same clip, word for word. R1-Omni's cold
start used 232 EMER clips and 348 clips labelled by hand; neither the choice nor the latter were published, and its one
printed example answers `anxious`, a word MER does not have: how its answers were made is unknown. Whoever has those
files in the original's JSON can use `prepare original`.
"""

import csv
from pathlib import Path

from verl_omni.corpora.listing import Clip, CorpusError, Listing, refuse_fold, require

PUBLISHED = {"train": 332}


def read(root: Path, fold: int | None = None) -> Listing:
    """List EMER-V2's clips with their English explanations.

    Args:
        root: Folder with the two CSV files and `video-labeled`.
        fold: Must be None, EMER has no folds.

    Raises:
        CorpusError: A file or column is missing, or a clip has no label.
    """
    refuse_fold(fold, "EMER")
    reasons = _column(require(root / "final-EMER-reason.csv", "EMER-V2's explanations"), "name", "english")
    label_file = require(root / "label-disdim.csv", "MER2024's labels of the same clips")
    labels = _column(label_file, "name", "discrete")
    clip_folder = require(root / "video-labeled", "MER2024's labelled clips, sample_00000000.mp4 …")
    unlabelled = [name for name in reasons if name not in labels]
    if unlabelled:
        raise CorpusError(f"{label_file}: no label for {len(unlabelled)} clips, e.g. {unlabelled[0]}")
    clips = [
        Clip(name, clip_folder / f"{name}.mp4", labels[name].strip().lower(), "train", reasoning=" ".join(text.split()))
        for name, text in reasons.items()
    ]
    return Listing("emer", clips, dict(PUBLISHED))


def _column(path: Path, key: str, value: str) -> dict[str, str]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {key, value} <= set(reader.fieldnames or ()):
            raise CorpusError(f"{path}: columns {reader.fieldnames} found, `{key}` and `{value}` expected")
        return {row[key]: row[value] for row in reader}
