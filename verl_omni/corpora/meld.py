"""MELD: 13,708 utterances of the series Friends, 7 emotions; open to download without a form.

Layout and counts: the corpus's repository (declare-lab/MELD) and its archive MELD.Raw.tar.gz:

    {train,dev,test}_sent_emo.csv     ``…,Emotion,…,Dialogue_ID,Utterance_ID,…``, at the top or in data/MELD
    …/dia6_utt1.mp4                   below one folder a split, whose name holds the split's: train_splits,
                                      dev_splits_complete, output_repeated_splits_test

The archive lacks one clip of the dev set and holds one damaged one (train, dia125_utt3): ``--partial`` accepts that.
Copies under other names (``final_videos_test…``, ``._dia…``) are passed over.
"""

from pathlib import Path

from verl_omni.corpora.listing import Clip, CorpusError, Listing, first_of, read_columns
from verl_omni.labels import normalize

PUBLISHED = {"train": 9989, "dev": 1109, "test": 2610}


def read(root: Path) -> Listing:
    """List MELD's three splits."""
    clips = []
    for split in PUBLISHED:
        name = f"{split}_sent_emo.csv"
        annotations = first_of([root / name, root / "data" / "MELD" / name], "MELD's annotations")
        folders = sorted(path for path in root.rglob(f"*{split}*") if path.is_dir())
        if not folders:
            raise CorpusError(f"{root}: no folder *{split}* in it; unpack MELD.Raw.tar.gz and {split}.tar.gz there")
        files = {path.stem: path for folder in folders for path in folder.rglob("dia*_utt*.mp4")}
        for emotion, dialogue, utterance in read_columns(annotations, "Emotion", "Dialogue_ID", "Utterance_ID"):
            stem = f"dia{dialogue}_utt{utterance}"
            media = files.get(stem, folders[0] / f"{stem}.mp4")
            clips.append(Clip(f"{split}/{stem}", media, normalize(emotion, "meld"), split))
    return Listing("meld", clips, dict(PUBLISHED))
