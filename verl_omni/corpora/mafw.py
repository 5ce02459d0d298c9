"""MAFW: 10,045 clips, 11 single emotions; five folds over the 9,172 single-labelled clips.

Layout, as read by public loaders of the corpus (MAE-DFER's ``preprocess/mafw.py`` and others):

    data/clips/00025.mp4                                            the clips with sound
    Train & Test Set/single/no_caption/set_K/{train,test}.txt       lines ``00025.mp4 happiness``

The split folder is also met as ``Train_Test_Set`` and as ``split`` (MAE-DFER). The number of clips by fold is that of
the split files as MAE-DFER (sunlicai/MAE-DFER, ``saved/data/mafw``) saved them; MAFW's own page gives the totals only.
R1-Omni used another choice of clips, which was not published (docs/study.md).
"""

from pathlib import Path

from verl_omni.corpora.listing import Clip, CorpusError, Listing, first_of, require, require_fold
from verl_omni.labels import normalize

SPLIT_FOLDERS = ("Train & Test Set", "Train_Test_Set", "split")
# fold -> (train, test) of single/no_caption.
PUBLISHED = {1: (7333, 1839), 2: (7335, 1837), 3: (7339, 1833), 4: (7340, 1832), 5: (7341, 1831)}


def read(root: Path, fold: int = 1) -> Listing:
    """List one fold, 1 to 5, of the single-labelled clips in ``root``."""
    require_fold(fold, "MAFW")
    clip_folder = require(root / "data" / "clips", "MAFW's clips, 00001.mp4 …")
    folders = (root / name / "single" / "no_caption" for name in SPLIT_FOLDERS)
    set_folder = first_of(folders, "MAFW's split files") / f"set_{fold}"
    clips = []
    for split in ("train", "test"):
        path = require(set_folder / f"{split}.txt", "MAFW's split file with lines `00025.mp4 happiness`")
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                name, word = line.split()
                label = normalize(word, "mafw")
            except ValueError as error:  # not two words, or no label
                expected = f"{line!r} found, `00025.mp4 happiness` expected"
                raise CorpusError(f"{path}, line {number}: {expected} ({error})") from error
            clips.append(Clip(Path(name).stem, clip_folder / name, label, split))
    return Listing("mafw", clips, dict(zip(("train", "test"), PUBLISHED[fold], strict=True)), fold)
