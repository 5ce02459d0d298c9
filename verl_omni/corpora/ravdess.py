"""RAVDESS: 24 actors, two sentences, 8 emotions; a file's name is its annotation.

Names, folders and counts: the corpus's page at Zenodo (record 1188976) and Livingstone & Russo (2018), PLoS ONE 13(5):

    …/Actor_12/01-01-06-01-02-01-12.mp4
    modality (01 sound and picture, 02 picture, 03 sound) - channel (01 speech, 02 song) - emotion - intensity -
    statement - repetition - actor; men have odd numbers, women even ones

Speech with sound and picture is used: 60 trials by 24 actors = 1,440 clips. Folds are those of HiCMAE
(sunlicai/HiCMAE, ``saved/data/ravdess``): fold K tests actors 4K-3 to 4K, two men and two women.
"""

import re
from pathlib import Path

from verl_omni.corpora.listing import Clip, CorpusError, Listing, test_actors
from verl_omni.labels import normalize

EMOTIONS = {1: "neutral", 2: "calm", 3: "happy", 4: "sad", 5: "angry", 6: "fearful", 7: "disgust", 8: "surprised"}
STATEMENTS = {1: "Kids are talking by the door.", 2: "Dogs are sitting by the door."}
FOLDS = [{f"{actor:02}" for actor in range(first, first + 4)} for first in range(1, 25, 4)]
TRIALS = 60  # of each actor
NAME = re.compile(r"(0[123])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d\d)")


def read(root: Path, fold: int | None = None, actors: list[int] | None = None) -> Listing:
    """List RAVDESS's audio-visual speech clips; all are test data unless ``fold``, 1 to 6, or ``actors`` say otherwise.

    The ``Actor_XX`` folders may lie at any depth below ``root`` (the archives unpack differently).
    """
    tested = test_actors("RAVDESS", FOLDS, fold, actors)
    paths = sorted(root.rglob("Actor_[0-9][0-9]/*.mp4"))
    if not paths:
        raise CorpusError(f"{root}: no Actor_XX/*.mp4 below it; unpack Video_Speech_Actor_01.zip … _24.zip there")
    clips: dict[str, Clip] = {}
    for path in paths:
        match = NAME.fullmatch(path.stem)
        if match is None:
            raise CorpusError(f"{path}: not a RAVDESS file name such as 01-01-06-01-02-01-12.mp4; move it elsewhere")
        if match.groups()[:2] == ("01", "01"):
            emotion, _, statement, _, actor = match.groups()[2:]
            label, split = normalize(EMOTIONS[int(emotion)], "ravdess"), "test" if actor in tested else "train"
            about = f'A {"man" if int(actor) % 2 else "woman"} says: "{STATEMENTS[int(statement)]}"'
            clips.setdefault(path.stem, Clip(path.stem, path, label, split, actor=actor, about=about))
    sizes = {"train": TRIALS * (24 - len(tested)), "test": TRIALS * len(tested)}
    return Listing("ravdess", list(clips.values()), {split: size for split, size in sizes.items() if size}, fold)
