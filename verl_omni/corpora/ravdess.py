"""RAVDESS: 24 actors, two sentences, 8 emotions; a file's name is its annotation.

Names, folders and counts: the corpus's page at Zenodo (record 1188976) and Livingstone & Russo (2018), PLoS ONE 13(5):

    …/Actor_12/01-01-06-01-02-01-12.mp4
    modality (01 sound and picture, 02 picture, 03 sound) - channel (01 speech, 02 song) - emotion - intensity -
    statement - repetition - actor

Speech with sound and picture is used: 60 trials by 24 actors = 1,440 clips. All of it is test data: the paper measures
how R1-Omni generalises to it. R1-Omni's RAVDESS accuracies are all multiples of 1/300 and
not of 1/1440: they come from some other set of clips (300, or a multiple of it), which was not published.
"""

import re
from pathlib import Path

from verl_omni.corpora.listing import Clip, CorpusError, Listing, refuse_fold, require
from verl_omni.labels import normalize

EMOTIONS = {1: "neutral", 2: "calm", 3: "happy", 4: "sad", 5: "angry", 6: "fearful", 7: "disgust", 8: "surprised"}
PUBLISHED = {"test": 1440}
NAME = re.compile(r"(0[123])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d\d)")


def read(root: Path, fold: int | None = None) -> Listing:
    """List RAVDESS's audio-visual speech clips.

    Args:
        root: Folder below which the `Actor_XX` folders lie, at any depth (the archives unpack differently).
        fold: Must be None, RAVDESS has no folds.

    Raises:
        CorpusError: No actor folder, or a clip in one of them whose name is not a RAVDESS name.
    """
    refuse_fold(fold, "RAVDESS")
    require(root, "RAVDESS's Actor_01 … Actor_24 folders")
    paths = sorted(root.rglob("Actor_[0-9][0-9]/*.mp4"))
    if not paths:
        raise CorpusError(f"{root}: no Actor_XX/*.mp4 below it; unpack Video_Speech_Actor_01.zip … _24.zip there")
    clips = {}
    for path in paths:
        match = NAME.fullmatch(path.stem)
        if match is None:
            raise CorpusError(f"{path}: not a RAVDESS file name such as 01-01-06-01-02-01-12.mp4; move it elsewhere")
        modality, channel, emotion = match.groups()[:3]
        if (modality, channel) == ("01", "01"):
            label = normalize(EMOTIONS[int(emotion)], "ravdess")
            clips.setdefault(path.stem, Clip(path.stem, path, label, "test"))
    return Listing("ravdess", list(clips.values()), dict(PUBLISHED))
