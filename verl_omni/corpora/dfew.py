"""DFEW: 16,372 film clips, 7 emotions, five folds over the 11,697 single-labelled clips.

Layout and counts: the README the corpus is delivered with (version 1.0, 17 October 2020):

    Clip/original/…/N.mp4                                  the clips with sound, unpacked in parts (part_1 … part_11)
    EmoLabel_DataSplit/train(single-labeled)/set_K.csv     header `video_name,label`
    EmoLabel_DataSplit/test(single-labeled)/set_K.csv
    labels 1 happy, 2 sad, 3 neutral, 4 angry, 5 surprise, 6 disgust, 7 fear

The README writes `train(single_labeled)`, public loaders of the corpus (e.g. MAE-DFER) read `train(single-labeled)`:
both are accepted. It names clips `XXXXX.mp4`, loaders find `1.mp4`: clips are matched by number. `clip_224x224` holds
face crops without sound and is not used.

The published DFEW accuracies of R1-Omni are multiples of 1/2341, the size of the test sets of folds 1 and 2 and of no
other fold; which of the two was used is not stated.
"""

import csv
from pathlib import Path

from verl_omni.corpora.listing import Clip, CorpusError, Listing, require, require_fold
from verl_omni.labels import normalize

LABELS = {1: "happy", 2: "sad", 3: "neutral", 4: "angry", 5: "surprise", 6: "disgust", 7: "fear"}
# fold -> (train, test); the corpus's README.
PUBLISHED = {1: (9356, 2341), 2: (9356, 2341), 3: (9357, 2340), 4: (9358, 2339), 5: (9361, 2336)}


def read(root: Path, fold: int | None = None) -> Listing:
    """List one fold of DFEW.

    Args:
        root: Folder with `Clip` and `EmoLabel_DataSplit`.
        fold: 1 to 5, by default 1.

    Raises:
        CorpusError: A folder, file or column is not where the corpus's README puts it.
    """
    fold = require_fold(fold, "DFEW")
    clip_folder = require(root / "Clip" / "original", "DFEW's original clips with sound, N.mp4 in part folders")
    files = {int(path.stem): path for path in clip_folder.rglob("*.mp4") if path.stem.isdigit()}
    clips = []
    for split in ("train", "test"):
        for number, label in _annotations(root / "EmoLabel_DataSplit", split, fold):
            media = files.get(number, clip_folder / f"{number}.mp4")
            clips.append(Clip(str(number), media, label, split))
    return Listing("dfew", clips, dict(zip(("train", "test"), PUBLISHED[fold], strict=True)))


def _annotations(folder: Path, split: str, fold: int) -> list[tuple[int, str]]:
    spellings = [folder / f"{split}(single{dash}labeled)" / f"set_{fold}.csv" for dash in "-_"]
    path = next((path for path in spellings if path.is_file()), None)
    if path is None:
        raise CorpusError(f"{spellings[0]}: not found; unpack DFEW's EmoLabel_DataSplit below --root")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"video_name", "label"} <= set(reader.fieldnames or ()):
            raise CorpusError(f"{path}: columns {reader.fieldnames} found, `video_name,label` expected")
        annotations = []
        for row in reader:
            if not row["video_name"].isdigit() or row["label"] not in map(str, LABELS):
                raise CorpusError(f"{path}, line {reader.line_num}: {row} found, a number and a label 1..7 expected")
            annotations.append((int(row["video_name"]), normalize(LABELS[int(row["label"])], "dfew")))
    return annotations
