"""DFEW: 16,372 film clips, 7 emotions, five folds over the 11,697 single-labelled clips.

Layout and counts: the README the corpus is delivered with (version 1.0, 17 October 2020):

    Clip/original/…/N.mp4                                  the clips with sound, unpacked in parts (part_1 … part_11)
    EmoLabel_DataSplit/train(single-labeled)/set_K.csv     header ``video_name,label``
    EmoLabel_DataSplit/test(single-labeled)/set_K.csv
    labels 1 happy, 2 sad, 3 neutral, 4 angry, 5 surprise, 6 disgust, 7 fear

The README writes ``train(single_labeled)`` and ``XXXXX.mp4`` where public loaders of the corpus (e.g. MAE-DFER) read
``train(single-labeled)`` and ``1.mp4``: both are accepted. ``clip_224x224`` holds face crops without sound and is not
used. The default is fold 2, which R1-Omni was most likely trained on (docs/study.md).
"""

from pathlib import Path

from verl_omni.corpora.listing import Clip, CorpusError, Listing, first_of, read_columns, require, require_fold
from verl_omni.labels import normalize

LABELS = {1: "happy", 2: "sad", 3: "neutral", 4: "angry", 5: "surprise", 6: "disgust", 7: "fear"}
# fold -> (train, test); the corpus's README.
PUBLISHED = {1: (9356, 2341), 2: (9356, 2341), 3: (9357, 2340), 4: (9358, 2339), 5: (9361, 2336)}


def read(root: Path, fold: int = 2) -> Listing:
    """List one fold, 1 to 5, of the DFEW in ``root``."""
    require_fold(fold, "DFEW")
    clip_folder = require(root / "Clip" / "original", "DFEW's original clips with sound, N.mp4 in part folders")
    files = {int(path.stem): path for path in clip_folder.rglob("*.mp4") if path.stem.isdigit()}
    clips = []
    for split in ("train", "test"):
        spellings = (root / "EmoLabel_DataSplit" / f"{split}(single{dash}labeled)" / f"set_{fold}.csv" for dash in "-_")
        path = first_of(spellings, "DFEW's EmoLabel_DataSplit, unpacked below --root")
        for line, (name, label) in enumerate(read_columns(path, "video_name", "label"), start=2):
            if not name.isdigit() or label not in map(str, LABELS):
                raise CorpusError(f"{path}, line {line}: {name},{label} found, a number and a label 1..7 expected")
            media = files.get(int(name), clip_folder / f"{int(name)}.mp4")
            clips.append(Clip(str(int(name)), media, normalize(LABELS[int(label)], "dfew"), split))
    return Listing("dfew", clips, dict(zip(("train", "test"), PUBLISHED[fold], strict=True)), fold)
