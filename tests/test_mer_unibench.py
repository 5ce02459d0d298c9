"""OV-MERD's and MER-UniBench's annotation files, written as their authors' code writes them."""

import numpy as np
import pytest
from documents import documented
from test_open_corpora import put_clip

from verl_omni.__main__ import main
from verl_omni.corpora import mer_unibench
from verl_omni.corpora.listing import CorpusError
from verl_omni.data.files import read_rows


@pytest.fixture
def root(tmp_path):
    (tmp_path / "OVMERD" / "video").mkdir(parents=True)
    return tmp_path / "OVMERD"


def labels_of(root, name, **members):
    np.savez_compressed(root / name, **members)
    return {clip.id: clip.label for clip in mer_unibench.read(root, root / name).clips}


def test_open_vocabulary_lists_several_emotions(root):
    (root / "video" / "a.avi").write_bytes(b"x")
    file = root / "track2_train_ovmerd.csv"
    file.write_text("name,openset\na,\"['Happy', 'excited']\"\nb,[let down]\nc,\n")
    listing = mer_unibench.read(root, file)
    assert {clip.id: clip.label for clip in listing.clips} == {"a": "happy, excited", "b": "let down", "c": "neutral"}
    assert listing.data_source == "ovmerd" and {clip.split for clip in listing.clips} == {"train"}
    assert [clip.id for clip in listing.present("train")] == ["a"]


def test_words_indices_and_signs_become_labels(root):
    test1 = {"a": {"emo": "worried", "val": -1.0}, "b": {"emo": "happy", "val": -10}}
    assert labels_of(root, "label-6way.npz", train_corpus={}, test1_corpus=test1) == {"a": "worried", "b": "happy"}
    meld = {"d0_u0": {"emo": np.int64(6), "val": -10}, "d0_u1": {"emo": 1}}
    assert labels_of(root, "label.npz", test_corpus=meld) == {"d0_u0": "surprise", "d0_u1": "joy"}
    iemocap = {"Ses05F_1": {"emo": 3}, "Ses01F_1": {"emo": 0}}
    assert labels_of(root, "label_4way.npz", whole_corpus=iemocap) == {"Ses05F_1": "anger"}
    mosi = {"a": {"val": np.float32(1.2)}, "b": {"val": -0.4}, "c": {"val": 0.0}}
    assert labels_of(root, "mosi.npz", test_corpus=mosi) == {"a": "positive", "b": "negative"}


def test_an_archive_that_would_run_code_is_refused(root):
    class Runs:
        def __reduce__(self):
            return print, ("ran",)

    with pytest.raises(CorpusError, match="is no data"):
        labels_of(root, "label.npz", test_corpus={"a": Runs()})


def test_what_is_not_annotated_is_named(root):
    with pytest.raises(CorpusError, match="none of test1_corpus"):
        labels_of(root, "label.npz", train_corpus={})
    with pytest.raises(CorpusError, match="a: an `emo` or a `val`"):
        labels_of(root, "label.npz", test_corpus={"a": {"emo": 99}})
    (root / "ovlabel.csv").write_text("name,labels\na,happy\n")
    with pytest.raises(CorpusError, match="openset"):
        mer_unibench.read(root, root / "ovlabel.csv")


def test_the_documents_command_makes_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("/data/", "") for word in documented("prepare mer_unibench")[3:]]
    put_clip(tmp_path / "OVMERD" / "video" / "a.mp4")
    (tmp_path / words[words.index("--annotations") + 1]).write_text("name,openset\na,\"['Happy', 'excited']\"\n")
    assert main(words) == 0
    [row] = read_rows("data/ovmerd/train.parquet")
    assert row["reward_model"]["ground_truth"] == "happy, excited"
