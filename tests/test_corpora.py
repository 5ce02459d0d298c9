"""Corpora: small trees in the published layouts, with real clips, to rows for verl."""

import json
import re
import shutil
from pathlib import Path

import pytest

from verl_omni.__main__ import main
from verl_omni.cli.prepare import READERS
from verl_omni.corpora import dfew, emer, mafw, original, ravdess
from verl_omni.corpora.listing import CorpusError
from verl_omni.data.files import read_rows, write_rows
from verl_omni.errors import InputError
from verl_omni.media import read_audio, read_video
from verl_omni.prompts import QUESTION, instruction

CLIP = Path(__file__).parent / "golden" / "clips" / "landscape.mp4"


def put_clip(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(CLIP, path)


def put_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def dfew_root(tmp_path: Path) -> Path:
    root = tmp_path / "DFEW"
    for number, part in [(1, 1), (2, 1), (1700, 2), (16372, 11)]:
        put_clip(root / "Clip" / "original" / f"part_{part}" / f"{number}.mp4")
    put_clip(root / "Clip" / "original" / "part_1" / "00003.mp4")  # padded, as the corpus's README writes names
    splits = root / "EmoLabel_DataSplit"
    put_text(splits / "train(single-labeled)" / "set_2.csv", "video_name,label\n1,2\n1700,4\n3,7\n")
    put_text(splits / "test(single-labeled)" / "set_2.csv", "video_name,label\n2,1\n16372,6\n")
    return root


@pytest.fixture
def mafw_root(tmp_path: Path) -> Path:
    root = tmp_path / "MAFW"
    for name in ("00025", "07317", "10044"):
        put_clip(root / "data" / "clips" / f"{name}.mp4")
    folder = root / "Train & Test Set" / "single" / "no_caption" / "set_3"
    put_text(folder / "train.txt", "00025.mp4 happiness\n07317.mp4 anger\n")
    put_text(folder / "test.txt", "10044.mp4 helplessness\n")
    return root


@pytest.fixture
def ravdess_root(tmp_path: Path) -> Path:
    root = tmp_path / "RAVDESS"
    names = ["01-01-01-01-01-01-12", "01-01-06-01-02-01-12", "01-01-08-02-02-01-12"]
    skipped = ["02-01-06-01-02-01-12", "01-02-05-01-02-01-12"]  # no sound; song
    for name in names + skipped:
        put_clip(root / "Video_Speech_Actor_12" / "Actor_12" / f"{name}.mp4")
    return root


@pytest.fixture
def emer_root(tmp_path: Path) -> Path:
    root = tmp_path / "EMER"
    put_clip(root / "video-labeled" / "sample_00000000.mp4")
    quoted = '"In the video, he says: ""How would I know!""\nHe smiles."'
    reason = f"name,chinese,english\nsample_00000000,在视频中,{quoted}\n"
    put_text(root / "final-EMER-reason.csv", reason)
    put_text(root / "label-disdim.csv", "name,discrete,valence\nsample_00000000,happy,1.2\nsample_00000001,worried,0\n")
    return root


def prepare(*words: object) -> int:
    return main(["prepare", *map(str, words)])


def test_dfew_labels_are_numbers_and_clips_are_matched_by_number(dfew_root: Path) -> None:
    listing = dfew.read(dfew_root)
    assert [(clip.id, clip.label, clip.split) for clip in listing.clips] == [
        ("1", "sad", "train"),
        ("1700", "angry", "train"),
        ("3", "fear", "train"),
        ("2", "happy", "test"),
        ("16372", "disgust", "test"),
    ]
    assert listing.missing == []
    assert listing.published == {"train": 9356, "test": 2341}


def test_dfew_reads_the_underscore_spelling_of_the_split_folder(dfew_root: Path) -> None:
    splits = dfew_root / "EmoLabel_DataSplit"
    for split in ("train", "test"):
        (splits / f"{split}(single-labeled)").rename(splits / f"{split}(single_labeled)")
    assert len(dfew.read(dfew_root, fold=2).clips) == 5


def test_dfew_rows_carry_verls_keys_and_their_media_decode(dfew_root: Path, tmp_path: Path) -> None:
    assert prepare("dfew", "--root", dfew_root, "--out", tmp_path / "rows", "--partial") == 0
    rows = read_rows(tmp_path / "rows" / "train.parquet")
    row = rows[1]
    assert row["data_source"] == "dfew"
    assert row["prompt"] == [{"role": "user", "content": f"<video><audio>{instruction()}"}]
    assert row["reward_model"] == {"style": "rule", "ground_truth": "angry"}
    assert row["extra_info"] == {
        **{"index": 1, "split": "train", "id": "dfew/1700"},
        **{"fold": 2, "vocabulary": "authors"},
    }
    assert read_video(row["videos"][0]).shape[0] == 8
    assert read_audio(row["audios"][0]).ndim == 1
    assert [row["messages"][1]["content"] for row in read_rows(tmp_path / "rows" / "train_sft.parquet")] == [
        "sad",
        "angry",
        "fear",
    ]
    assert len(read_rows(tmp_path / "rows" / "test.parquet")) == 2


def test_counts_other_than_the_published_ones_are_an_error(dfew_root: Path, tmp_path: Path, capsys) -> None:
    assert prepare("dfew", "--root", dfew_root, "--out", tmp_path / "rows") == 1
    shown = capsys.readouterr()
    assert "dfew train: 3 clips annotated, 9356 published" in shown.err
    assert "--partial" in shown.err
    assert re.search(r"test\W+2341\W+2\W+0\W+happy 1, disgust 1", shown.out)
    assert not (tmp_path / "rows" / "train.parquet").exists()


def test_missing_and_empty_files_are_listed_and_left_out(dfew_root: Path, tmp_path: Path, capsys) -> None:
    gone = dfew_root / "Clip" / "original" / "part_2" / "1700.mp4"
    gone.unlink()
    empty = dfew_root / "Clip" / "original" / "part_1" / "2.mp4"
    empty.write_bytes(b"")
    assert prepare("dfew", "--root", dfew_root, "--out", tmp_path / "rows", "--partial") == 0
    listed = (tmp_path / "rows" / "missing.txt").read_text().splitlines()
    assert listed == [str(dfew_root / "Clip" / "original" / "1700.mp4"), str(empty)]
    assert "2 of 5 media files are missing" in capsys.readouterr().err
    assert [row["extra_info"]["id"] for row in read_rows(tmp_path / "rows" / "train.parquet")] == ["dfew/1", "dfew/3"]


def test_a_clip_in_both_splits_is_reported(dfew_root: Path) -> None:
    put_text(dfew_root / "EmoLabel_DataSplit" / "test(single-labeled)" / "set_2.csv", "video_name,label\n1,2\n")
    assert "dfew: clip 1 is listed twice (train, test)" in dfew.read(dfew_root).problems()


@pytest.mark.parametrize("line", ["1,0", "1,8", "x.mp4,1"])
def test_dfew_line_that_is_no_annotation_is_named(dfew_root: Path, line: str) -> None:
    path = dfew_root / "EmoLabel_DataSplit" / "train(single-labeled)" / "set_2.csv"
    put_text(path, f"video_name,label\n1,2\n{line}\n")
    with pytest.raises(CorpusError, match=re.escape(f"{path}, line 3")):
        dfew.read(dfew_root)


def test_wrong_root_says_what_was_expected(tmp_path: Path, capsys) -> None:
    assert prepare("dfew", "--root", tmp_path, "--out", tmp_path / "rows") == 2
    assert f"{tmp_path / 'Clip' / 'original'}: not found; expected DFEW's original clips" in capsys.readouterr().err


def test_mafw_words_are_mapped_to_the_label_set(mafw_root: Path) -> None:
    listing = mafw.read(mafw_root, fold=3)
    assert [(clip.id, clip.label, clip.split) for clip in listing.clips] == [
        ("00025", "happy", "train"),
        ("07317", "angry", "train"),
        ("10044", "helpless", "test"),
    ]
    assert listing.missing == []
    assert listing.published == {"train": 7339, "test": 1833}


def test_mafw_unknown_label_names_file_and_line(mafw_root: Path) -> None:
    path = mafw_root / "Train & Test Set" / "single" / "no_caption" / "set_3" / "test.txt"
    put_text(path, "10044.mp4 anger_disgust\n")
    with pytest.raises(CorpusError, match=re.escape(f"{path}, line 1") + ".*anger_disgust"):
        mafw.read(mafw_root, fold=3)


def test_folds_run_from_one_to_five(mafw_root: Path, ravdess_root: Path) -> None:
    with pytest.raises(CorpusError, match="folds 1 to 5"):
        mafw.read(mafw_root, fold=6)
    with pytest.raises(CorpusError, match="folds 1 to 6"):
        ravdess.read(ravdess_root, fold=7)


def test_ravdess_labels_come_from_file_names(ravdess_root: Path) -> None:
    listing = ravdess.read(ravdess_root)
    assert [(clip.id, clip.label) for clip in listing.clips] == [
        ("01-01-01-01-01-01-12", "neutral"),
        ("01-01-06-01-02-01-12", "fear"),
        ("01-01-08-02-02-01-12", "surprise"),
    ]
    assert {clip.split for clip in listing.clips} == {"test"}
    assert listing.published == {"test": 1440}


def test_emer_rows_carry_the_reasoning(emer_root: Path, tmp_path: Path) -> None:
    assert prepare("emer", "--root", emer_root, "--out", tmp_path / "rows", "--partial") == 0
    (row,) = read_rows(tmp_path / "rows" / "train_sft.parquet")
    assert row["messages"] == [
        {"role": "user", "content": f"<video><audio>{instruction()}"},
        {
            "role": "assistant",
            "content": '<think>In the video, he says: "How would I know!" He smiles.</think>\n<answer>happy</answer>',
        },
    ]


def test_emer_clip_without_label_is_an_error(emer_root: Path) -> None:
    put_text(emer_root / "label-disdim.csv", "name,discrete,valence\nother,happy,0\n")
    with pytest.raises(CorpusError, match=r"no label for 1 clips, e\.g\. sample_00000000"):
        emer.read(emer_root)


def test_original_json_survives_a_round_trip(emer_root: Path, dfew_root: Path, tmp_path: Path) -> None:
    for corpus, root in (("emer", emer_root), ("dfew", dfew_root)):
        out = tmp_path / corpus
        assert prepare(corpus, "--root", root, "--out", out, "--partial", "--original-json") == 0
        command = ["--root", root, "--annotations", out / "train.json", "--out", tmp_path / f"{corpus}_again"]
        assert prepare("original", *command) == 0
        first = read_rows(out / "train_sft.parquet")
        again = read_rows(tmp_path / f"{corpus}_again" / "train_sft.parquet")
        for key in ("messages", "videos", "audios"):
            assert [row[key] for row in first] == [row[key] for row in again]


def test_original_json_is_written_as_the_original_reads_it(dfew_root: Path, tmp_path: Path) -> None:
    prepare("dfew", "--root", dfew_root, "--out", tmp_path, "--partial", "--original-json")
    entries = json.loads((tmp_path / "train.json").read_text())
    assert entries[0] == {
        "video": "Clip/original/part_1/1.mp4",
        "conversations": [
            {"from": "human", "value": f"<video>\n<audio>\n{QUESTION}"},
            {"from": "gpt", "value": "sad"},
        ],
    }


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "a dict found in it"),
        ([{"video": "a.mp4"}], "entry 0: `video` and `conversations` of turns"),
        ([{"video": "a.mp4", "conversations": []}], r"entry 0 \(a.mp4\): 0 answers"),
    ],
)
def test_original_json_of_another_form_names_the_entry(tmp_path: Path, entries: object, message: str) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(InputError, match=message):
        original.read(path, tmp_path)


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl"])
def test_rows_are_read_from_verls_formats(tmp_path: Path, suffix: str) -> None:
    rows = [{"data_source": "demo", "videos": ["a.mp4"], "extra_info": {"index": 0}}]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        write_rows(rows, path)
    else:
        path.write_text(json.dumps(rows) if suffix == ".json" else json.dumps(rows[0]) + "\n")
    assert read_rows(path) == rows


def test_rows_file_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows.txt: rows are read from \.parquet"):
        read_rows(tmp_path / "rows.txt")


def test_a_table_in_another_encoding_is_named(tmp_path: Path, capsys) -> None:
    table = tmp_path / "clips.csv"
    table.write_bytes("path,label\n片段.mp4,happy\n".encode("gbk"))
    with pytest.raises(InputError, match=r"clips\.csv: not readable as \.csv \('utf-8' codec"):
        read_rows(table)


def test_a_bug_keeps_its_traceback(dfew_root: Path, tmp_path: Path, monkeypatch) -> None:
    """What is wrong with the input is said in a line; any other error is not the user's."""
    monkeypatch.setitem(READERS, "dfew", lambda root: int("bug"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["prepare", "dfew", "--root", str(dfew_root), "--out", str(tmp_path)])
