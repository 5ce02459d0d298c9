"""EMER: written explanations of the emotion in MER clips, for the cold start.

Annotations, as published by their authors (zeroQiaoba/AffectGPT, EMER/dataset-v1 and -v2; MER2025 on the Hub):

    final-EMER-reason.csv             EMER-V2, ``name,chinese,english``, 332 clips
    gt-eng.csv                        EMER-V1, ``names,emotions,subtitles,reasons``, 100 clips
    track3_train_ovmerd.csv           MER2025's edition of EMER-V2, ``name,reason``, 332 clips
    track3_train_mercaptionplus.csv   MER2025's machine-made ones, ``name,reason``, 31,327 clips

Clips (each under MER's licence): MER2023's ``train/NAME.avi``, MER2024's ``video-labeled/NAME.mp4``, MER2025's
``video/NAME.mp4``. Labels: MER's discrete one of the same clip (neutral, angry, happy, sad, worried, surprise), from
``label-disdim.csv`` (MER2024), ``train-label.csv`` (MER2023) or ``track1_train_disdim.csv`` (MER2025); where there is
none, the first word of MER2025's open-vocabulary labels (``track2_….csv``, column ``openset``). EMER-V1 states its own.

R1-Omni's one printed example answers ``anxious``, so MER's ``worried`` becomes that unless ``--vocabulary corpus`` is
given. What of its cold start was published, and what stands in for the rest: docs/study.md.
"""

import re
from pathlib import Path

from verl_omni.corpora.listing import Clip, CorpusError, Listing, first_of, read_columns, require
from verl_omni.labels import canonical

# file -> its columns of name, explanation and (if it has one) label; its published number of clips
FILES = {
    "final-EMER-reason.csv": ("name", "english", "", 332),
    "gt-eng.csv": ("names", "reasons", "emotions", 100),
    "track3_train_ovmerd.csv": ("name", "reason", "", 332),
    "track3_train_mercaptionplus.csv": ("name", "reason", "", 31327),
}
LABEL_FILES = ("label-disdim.csv", "train-label.csv", "track1_train_disdim.csv")
CLIP_FOLDERS = ("video-labeled", "train", "video")


def read(root: Path, annotations: Path | None = None) -> Listing:
    """List the clips of one of ``FILES``, by default the first in ``root``, with explanations, as training data."""
    path = annotations or first_of((root / name for name in FILES), "EMER's explanations")
    if path.name not in FILES:
        raise CorpusError(f"{path}: the annotation files that are known are {', '.join(FILES)}")
    name_column, text_column, label_column, published = FILES[path.name]
    labels = dict(read_columns(path, name_column, label_column)) if label_column else _labels(root, path)
    folder = first_of((root / name for name in CLIP_FOLDERS), "MER's clips, sample_00000000.mp4 or .avi …")
    files = {clip.stem: clip for clip in folder.iterdir()}
    texts = dict(read_columns(path, name_column, text_column))
    if unlabelled := [name for name in texts if not labels.get(name)]:
        raise CorpusError(f"{path}: no label for {len(unlabelled)} clips, e.g. {unlabelled[0]}")
    clips = [
        Clip(name, files.get(name, folder / f"{name}.mp4"), canonical(labels[name]), "train", " ".join(text.split()))
        for name, text in texts.items()
    ]
    return Listing("emer", clips, {"train": published})


def _labels(root: Path, annotations: Path) -> dict[str, str]:
    """MER's label of each clip, or the first of MER2025's open-vocabulary ones."""
    opened = annotations.with_name(annotations.name.replace("track3", "track2"))
    files = [root / name for name in LABEL_FILES if (root / name).is_file()]
    labels = {}
    if opened != annotations and opened.is_file():
        listed = read_columns(opened, "name", "openset")
        labels = {name: first[0] for name, words in listed if (first := re.search(r"[\w-]+", words))}
    elif not files:
        require(root / LABEL_FILES[0], "MER's labels of the same clips")
    for file in files:
        labels |= dict(read_columns(file, "name", "discrete"))
    return labels
