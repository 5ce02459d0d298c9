"""CREMA-D: 7,442 clips of 91 actors (48 men, 43 women), 12 sentences, 6 emotions; a file's name is its annotation.

Layout and counts: the corpus's repository (CheyneyComputerScience/CREMA-D) and Cao et al. (2014), doi
10.1109/TAFFC.2014.2336244. The clips come with git-lfs; no form has to be signed.

    VideoFlash/1001_DFA_ANG_XX.flv     actor _ sentence _ emotion _ level, with sound
    SentenceFilenames.csv              ``Stimulus_Number,Filename``: all 7,442 names
    VideoDemographics.csv              ``ActorID,Age,Sex,…``

The corpus has no splits of its own. Here fold K tests every fifth woman and every fifth man, from the Kth on: no actor
is in both parts, and both have women and men in the corpus's proportion.
"""

import json
from pathlib import Path

from verl_omni.corpora.listing import Clip, CorpusError, Listing, read_columns, require, test_actors
from verl_omni.labels import normalize

EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
SENTENCES: dict[str, str] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
PERSON = {"Male": "man", "Female": "woman"}
FEWER = {"1002": 81, "1008": 76, "1009": 76, "1019": 76, "1076": 81}  # clips of these actors; all others have 82


def folds(people: dict[str, str]) -> list[set[str]]:
    """The tested actors of each fold; ``people`` gives the actors' sex."""
    women, men = (sorted(actor for actor in people if people[actor] == sex) for sex in ("Female", "Male"))
    return [{*women[first::5], *men[first::5]} for first in range(5)]


def read(root: Path, fold: int | None = None, actors: list[int] | None = None) -> Listing:
    """List the CREMA-D in ``root``; tested is a fold, 1 (by default) to 5, or in its place ``actors`` such as 1001."""
    names_file = require(root / "SentenceFilenames.csv", "CREMA-D's list of clips")
    people = dict(read_columns(require(root / "VideoDemographics.csv", "the actors' sex"), "ActorID", "Sex"))
    clip_folder = require(root / "VideoFlash", "CREMA-D's clips, 1001_DFA_ANG_XX.flv (`git lfs pull` gets them)")
    fold = 1 if fold is None and actors is None else fold
    tested = test_actors("CREMA-D", folds(people), fold, actors)
    clips = []
    for line, (name,) in enumerate(read_columns(names_file, "Filename"), start=2):
        parts = name.split("_")
        if len(parts) != 4 or parts[0] not in people or parts[1] not in SENTENCES or parts[2] not in EMOTIONS:
            raise CorpusError(f"{names_file}, line {line}: {name} found, a name such as 1001_DFA_ANG_XX expected")
        actor, sentence, emotion, _ = parts
        label, split = normalize(EMOTIONS[emotion], "crema_d"), "test" if actor in tested else "train"
        about = f'A {PERSON[people[actor]]} says: "{SENTENCES[sentence]}"'
        clips.append(Clip(name, clip_folder / f"{name}.flv", label, split, actor=actor, about=about))
    total, test = (sum(FEWER.get(actor, 82) for actor in some) for some in (people, tested))
    return Listing("crema_d", clips, {"train": total - test, "test": test}, fold)
