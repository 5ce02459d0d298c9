"""OV-MERD and MER-UniBench: emotions from an open vocabulary, basic emotions and sentiment, by their annotation files.

Files, as the benchmark's own code reads them (arXiv 2501.16566, zeroQiaoba/AffectGPT; each corpus under its licence):

    track2_train_ovmerd.csv, ovlabel.csv   ``name,openset``: OV-MERD, OV-MERD+; the label lists the clip's emotions
    label-6way.npz                         MER2023, MER2024: ``test1_corpus``, emotion words
    label.npz, label_4way.npz              MELD ``test_corpus``, IEMOCAP ``whole_corpus`` (session 5 is tested), indices
    label.npz                              CMU-MOSI, CMU-MOSEI, SIMS, SIMSv2: ``test_corpus``, valence
    video/NAME.mp4 or .avi                 the clips

A training file (``*train*.csv``) makes training rows, any other makes test rows. Of a valence, the sign is the label;
clips of valence 0 are left out, as in the benchmark. The corpus is called like its folder.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from verl_omni.corpora.listing import Clip, CorpusError, Listing, read_columns, require
from verl_omni.rewards.wheel import emotion_list

EMOTIONS_OF = {  # archive's member -> what its indices stand for
    "whole_corpus": ("happy", "sad", "neutral", "anger"),
    "test_corpus": ("anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise"),
}
MEMBERS = ("test1_corpus", "test_corpus", "whole_corpus")


def read(root: Path, annotations: Path) -> Listing:
    """List the clips of one of the annotation files above."""
    require(annotations, "an annotation file of OV-MERD or MER-UniBench")
    folder = require(root / "video", "the clips")
    if annotations.suffix == ".csv":
        rows = read_columns(annotations, "name", "openset")
        labels = {name: ", ".join(emotion_list(listed)) or "neutral" for name, listed in rows}
    else:
        labels = _of_archive(annotations)
    split = "train" if "train" in annotations.stem else "test"
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in (".mp4", ".avi")}
    clips = [Clip(name, files.get(name, folder / f"{name}.mp4"), label, split) for name, label in labels.items()]
    return Listing(root.resolve().name.lower(), clips)


def _of_archive(path: Path) -> dict[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            member = next((name for name in MEMBERS if f"{name}.npy" in archive.namelist()), None)
            if member is None:
                raise CorpusError(f"{path}: none of {', '.join(MEMBERS)} in it, only {archive.namelist()}")
            with archive.open(f"{member}.npy") as file:
                np.lib.format.read_magic(file)
                np.lib.format.read_array_header_1_0(file)
                corpus = _DataOnly(file).load().item()
    except (zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise CorpusError(f"{path}: not an archive of annotations: {error}") from error
    if member == "whole_corpus":
        corpus = {name: value for name, value in corpus.items() if name.startswith("Ses05")}
    labels = {name: _label(f"{path}, {name}", value, member) for name, value in corpus.items()}
    return {name: label for name, label in labels.items() if label}


def _label(place: str, annotation: dict, member: str) -> str:
    """The emotion, or the sign of the valence; empty for a valence of 0."""
    match annotation:
        case {"emo": str(word)}:
            return word
        case {"emo": index} if member in EMOTIONS_OF and 0 <= int(index) < len(EMOTIONS_OF[member]):
            return EMOTIONS_OF[member][int(index)]
        case {"val": valence}:
            return "positive" if valence > 0 else "negative" if valence < 0 else ""
    raise CorpusError(f"{place}: an `emo` or a `val` expected, {annotation!r} found")


class _DataOnly(pickle.Unpickler):
    """NumPy's arrays and scalars, and nothing that could run."""

    ALLOWED = ("_reconstruct", "ndarray", "dtype", "scalar")

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in self.ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} in it, which is no data")
