"""Any clips of one's own: a CSV or JSONL file that names them.

    path,label,text,split,actor
    clips/1.mp4,happy,"She smiles and laughs.",train,anna

``path`` (relative to --root) and ``label`` are needed. ``text`` is an explanation for a cold start; ``split`` is
``train`` (the default), ``test`` or another name; ``actor`` lets the intervals of scores go by actor.
"""

from pathlib import Path

from verl_omni.corpora.listing import Clip, CorpusError, Listing
from verl_omni.data.files import read_rows

COLUMNS = {"path": "", "label": "", "text": "", "split": "train", "actor": ""}


def read(root: Path, annotations: Path) -> Listing:
    """List the clips of a file; the corpus is called like the file."""
    clips = []
    for number, row in enumerate(read_rows(annotations), start=1):
        path, label, text, split, actor = (str(row.get(key) or default) for key, default in COLUMNS.items())
        if not path or not label:
            raise CorpusError(f"{annotations}, row {number}: `path` and `label` expected, {row} found")
        clips.append(Clip(path, root / path, label.strip(), split, " ".join(text.split()), actor))
    return Listing(annotations.stem, clips)
