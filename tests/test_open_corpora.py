"""Corpora without a licence form, and clips of one's own: small trees in the published layouts, with real clips."""

import json
import re
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from originals import GOLDEN, cut_sound

from verl_omni.__main__ import main
from verl_omni.corpora import crema_d, emer, mafw, meld, original, ravdess
from verl_omni.corpora.demo import FPS, SAMPLING_RATE, X264, draw_face, make_voice
from verl_omni.corpora.listing import CorpusError
from verl_omni.data.check import check_media, load_rows
from verl_omni.data.files import read_rows
from verl_omni.labels import ALIASES, LABELS, VOCABULARIES, canonical, label_set, normalize
from verl_omni.media import read_audio, read_video
from verl_omni.media.write import write_clip
from verl_omni.prompts import QUESTION, instruction


def put_clip(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(crc32(path.name.encode()))
    write_clip(path, draw_face(rng, "bright"), make_voice(rng, "high"), FPS, SAMPLING_RATE, **X264)


def put_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def prepare(*words: object) -> int:
    return main(["prepare", *map(str, words)])


def put_ravdess(root: Path, actors: list[int]) -> Path:
    for actor in actors:
        for emotion in (3, 6):
            put_clip(root / f"Actor_{actor:02d}" / f"01-01-0{emotion}-01-01-01-{actor:02d}.mp4")
    return root


def put_crema_d(root: Path, names: list[str]) -> Path:
    put_text(root / "VideoDemographics.csv", '"ActorID","Age","Sex","Race","Ethnicity"\n' + "".join(
        f'{actor},30,"{"Male" if actor % 2 else "Female"}","Caucasian","Not Hispanic"\n' for actor in range(1001, 1011)
    ))  # fmt: skip
    lines = "".join(f'{number},"{name}"\n' for number, name in enumerate(names, start=1))
    put_text(root / "SentenceFilenames.csv", f'"Stimulus_Number","Filename"\n{lines}')
    for name in names:
        put_clip(root / "VideoFlash" / f"{name}.flv")
    return root


def test_ravdess_actors_are_either_trained_on_or_tested(tmp_path: Path) -> None:
    root = put_ravdess(tmp_path, [4, 5])
    assert {clip.split for clip in ravdess.read(root).clips} == {"test"}
    by_fold = ravdess.read(root, fold=1)
    assert [(clip.actor, clip.split) for clip in by_fold.clips] == [("04", "test")] * 2 + [("05", "train")] * 2
    assert by_fold.published == {"train": 1200, "test": 240}
    chosen = ravdess.read(root, actors=[5, 6, 7, 8, 9])
    assert chosen.published == {"train": 1140, "test": 300}, "the published figures are multiples of 1/300"
    assert {clip.actor for clip in chosen.clips if clip.split == "test"} == {"05"}
    for wrong in ({"fold": 1, "actors": [5]}, {"actors": [25]}):
        with pytest.raises(CorpusError, match="--actors"):
            ravdess.read(root, **wrong)


def test_crema_d_is_split_by_actor_and_sex(tmp_path: Path) -> None:
    names = ["1001_DFA_ANG_XX", "1002_IEO_HAP_LO", "1003_TIE_NEU_XX"]
    listing = crema_d.read(put_crema_d(tmp_path, names))
    assert [(clip.id, clip.label, clip.split) for clip in listing.clips] == [
        ("1001_DFA_ANG_XX", "angry", "test"),
        ("1002_IEO_HAP_LO", "happy", "test"),
        ("1003_TIE_NEU_XX", "neutral", "train"),
    ]
    assert listing.missing == [] and listing.published == {"train": 8 * 82 - 12, "test": 163}
    assert read_video(listing.clips[0].media).shape[0] == 8 and len(read_audio(listing.clips[0].media)) > 16000
    tested = crema_d.folds(crema_d_people())
    assert sum(map(len, tested)) == len(set().union(*tested)) == 91, "each actor is tested in one fold"
    assert [sum(crema_d.FEWER.get(actor, 82) for actor in fold) for fold in tested] == [1551, 1551, 1552, 1394, 1394]


def crema_d_people() -> dict[str, str]:
    """The 91 actors: 43 women, the others men (VideoDemographics.csv)."""
    women = (
        *(2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 18, 20, 21, 24, 25, 28, 29, 30, 37, 43, 46, 47, 49, 52, 53, 54, 55, 56),
        *(58, 60, 61, 63, 72, 73, 74, 75, 76, 78, 79, 82, 84, 89, 91),
    )
    return {str(1000 + actor): "Female" if actor in women else "Male" for actor in range(1, 92)}


def test_crema_d_name_that_is_none_is_named(tmp_path: Path) -> None:
    root = put_crema_d(tmp_path, ["1001_DFA_ANG_XX"])
    put_text(root / "SentenceFilenames.csv", "Stimulus_Number,Filename\n1,1001_XXX_ANG_XX\n")
    with pytest.raises(CorpusError, match=r"SentenceFilenames\.csv, line 2: 1001_XXX_ANG_XX"):
        crema_d.read(root)


def test_meld_finds_its_clips_in_the_folders_of_its_archive(tmp_path: Path) -> None:
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
    folders = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
    for number, (split, folder) in enumerate(folders.items()):
        put_text(tmp_path / f"{split}_sent_emo.csv", f'{header}1,"Oh, my God!",Ross,joy,positive,{number},3\n')
        put_clip(tmp_path / folder / f"dia{number}_utt3.mp4")
    put_text(tmp_path / folders["test"] / "._dia2_utt3.mp4", "not a clip")
    listing = meld.read(tmp_path)
    assert [(clip.id, clip.label) for clip in listing.clips] == [
        ("train/dia0_utt3", "happy"),
        ("dev/dia1_utt3", "happy"),
        ("test/dia2_utt3", "happy"),
    ]
    assert listing.missing == [] and sum(listing.published.values()) == 13708


def test_any_csv_becomes_rows(tmp_path: Path) -> None:
    put_clip(tmp_path / "a.mp4")
    put_clip(tmp_path / "b.mp4")
    put_text(
        tmp_path / "mine.csv", "path,label,text,split,actor\na.mp4,happy,He  laughs.,,anna\nb.mp4,bored,,test,bo\n"
    )
    assert prepare("csv", "--root", tmp_path, "--annotations", tmp_path / "mine.csv", "--out", tmp_path / "rows") == 0
    (train,) = read_rows(tmp_path / "rows" / "train_sft.parquet")
    assert train["data_source"] == "mine" and train["extra_info"]["actor"] == "anna"
    assert train["messages"][0]["content"].endswith(instruction())
    assert train["messages"][1]["content"] == "<think>He laughs.</think>\n<answer>happy</answer>"
    (test,) = read_rows(tmp_path / "rows" / "test.parquet")
    assert test["reward_model"]["ground_truth"] == "bored" and test["extra_info"]["vocabulary"] == "as found"
    put_text(tmp_path / "bad.csv", "path,label\na.mp4,\n")
    assert prepare("csv", "--root", tmp_path, "--annotations", tmp_path / "bad.csv", "--out", tmp_path / "rows") == 2


def test_explanations_are_made_by_rule_or_given(tmp_path: Path) -> None:
    root = put_ravdess(tmp_path / "RAVDESS", [1, 5])
    common = ("ravdess", "--root", root, "--fold", 1, "--partial", "--out", tmp_path / "rows")
    assert prepare(*common, "--explanations", "rules") == 0
    row, _ = read_rows(tmp_path / "rows" / "train_sft.parquet")
    answer = row["messages"][1]["content"]
    assert re.fullmatch(
        r"<think>A man says: \"Kids are talking by the door\..*</think>\n<answer>happy</answer>", answer
    )
    texts = "".join(f'{{"id": "01-01-0{emotion}-01-01-01-05", "text": "Seen."}}\n' for emotion in (3, 6))
    put_text(tmp_path / "texts.jsonl", texts)
    assert prepare(*common, "--explanations", tmp_path / "texts.jsonl") == 0
    row, _ = read_rows(tmp_path / "rows" / "train_sft.parquet")
    assert row["messages"][1]["content"].startswith("<think>Seen.</think>")
    put_text(tmp_path / "texts.jsonl", texts.splitlines()[0])
    assert prepare(*common, "--explanations", tmp_path / "texts.jsonl") == 2, "a training clip has no text"


@pytest.mark.parametrize("folder", ["Train & Test Set", "Train_Test_Set", "split"])
def test_mafw_is_read_in_each_layout(tmp_path: Path, folder: str) -> None:
    put_clip(tmp_path / "data" / "clips" / "00025.mp4")
    for split in ("train", "test"):
        put_text(tmp_path / folder / "single" / "no_caption" / "set_1" / f"{split}.txt", "00025.mp4 contempt\n")
    assert [clip.label for clip in mafw.read(tmp_path).clips] == ["contemptuous"] * 2


V2 = "name,chinese,english\ns1,看,She frets.\n"


@pytest.mark.parametrize(
    ("annotations", "labels", "clip"),
    [
        (("final-EMER-reason.csv", V2), "label-disdim.csv", "video-labeled/s1.mp4"),
        (("final-EMER-reason.csv", V2), "train-label.csv", "train/s1.avi"),
        (("gt-eng.csv", "names,emotions,subtitles,reasons\ns1,worried,Oh.,She frets.\n"), None, "train/s1.avi"),
        (("track3_train_ovmerd.csv", "name,reason\ns1,She frets.\n"), "track1_train_disdim.csv", "video/s1.mp4"),
        (("track3_train_mercaptionplus.csv", "name,reason\ns1,She frets.\n"), "openset", "video/s1.mp4"),
    ],
)  # fmt: skip
def test_emer_is_read_in_each_layout(tmp_path: Path, annotations: tuple, labels: str | None, clip: str) -> None:
    put_text(tmp_path / annotations[0], annotations[1])
    if labels == "openset":
        put_text(tmp_path / "track2_train_mercaptionplus.csv", "name,openset\ns1,\"['worried', 'tense']\"\n")
    elif labels:
        put_text(tmp_path / labels, "name,discrete,valence\ns1,worried,-1\n")
    put_clip(tmp_path / Path(clip).with_suffix(".mp4"))
    (tmp_path / Path(clip).with_suffix(".mp4")).rename(tmp_path / clip)
    (found,) = emer.read(tmp_path).clips
    assert (found.label, found.reasoning, found.media) == ("anxious", "She frets.", tmp_path / clip)


def test_vocabularies_name_the_same_classes() -> None:
    for corpus, words in LABELS.items():
        assert {canonical(word) for word in VOCABULARIES["corpus"][corpus]} == set(words)
    assert all(canonical(word) == word for word in ALIASES.values())
    assert normalize("Contempt", "mafw") == "contemptuous" and normalize("anxious", "mafw", "corpus") == "anxiety"
    assert label_set("mafw", {"happiness", "anxiety"}) == VOCABULARIES["corpus"]["mafw"]
    assert label_set("mafw", {"neutral"}) == LABELS["mafw"] and label_set("mine", {"neutral"}) == ()


def test_the_vocabulary_is_chosen_at_prepare_and_stated_in_the_rows(tmp_path: Path) -> None:
    put_clip(tmp_path / "data" / "clips" / "1.mp4")
    for split in ("train", "test"):
        put_text(tmp_path / "split" / "single" / "no_caption" / "set_1" / f"{split}.txt", "1.mp4 anxiety\n")
    for vocabulary, word in (("authors", "anxious"), ("corpus", "anxiety")):
        out = tmp_path / vocabulary
        assert prepare("mafw", "--root", tmp_path, "--out", out, "--partial", "--vocabulary", vocabulary) == 0
        (row,) = read_rows(out / "test.parquet")
        assert row["reward_model"]["ground_truth"] == word and row["extra_info"]["vocabulary"] == vocabulary


def test_labels_alone_are_learnt_from_the_bare_question(tmp_path: Path) -> None:
    root = put_ravdess(tmp_path / "RAVDESS", [1, 5])
    assert prepare("ravdess", "--root", root, "--fold", 1, "--partial", "--out", tmp_path / "rows") == 0
    row, _ = read_rows(tmp_path / "rows" / "train_sft.parquet")
    assert row["messages"][0]["content"] == f"<video><audio>{QUESTION}"
    assert row["messages"][1]["content"] == "happy"


def test_the_authors_json_keeps_its_questions_and_tells_corpus_and_split_by_its_paths(tmp_path: Path) -> None:
    put_clip(tmp_path / "MER2023" / "train" / "s1.mp4")
    put_clip(tmp_path / "DFEW" / "test" / "1.mp4")
    entries = [
        {"video": f"/another/disk/{path}", "conversations": [
            {"from": "human", "value": f"<video>\n<audio>\n{question}"}, {"from": "gpt", "value": answer}]}
        for path, question, answer in (
            ("MER2023/train/s1.mp4", "What now? In <think> </think>, <answer> </answer>.",
             "<think>Hm.</think>\n<answer>anxiety</answer>"),
            ("DFEW/test/1.mp4", "Who cries?\nfear ,sad", "sad"),
        )
    ]  # fmt: skip
    (tmp_path / "clips.json").write_text(json.dumps(entries))
    first, second = original.read(tmp_path / "clips.json", tmp_path).clips
    assert first.media == tmp_path / "MER2023" / "train" / "s1.mp4"
    assert (first.corpus, first.split, second.corpus, second.split) == ("emer", "train", "dfew", "test")
    command = ("original", "--root", tmp_path, "--annotations", tmp_path / "clips.json", "--out", tmp_path / "rows")
    assert prepare(*command) == 0
    (row,) = read_rows(tmp_path / "rows" / "train_sft.parquet")
    assert row["messages"][0]["content"] == f"<video><audio>{entries[0]['conversations'][0]['value'][16:]}"
    assert row["messages"][1]["content"].endswith("<answer>anxiety</answer>") and row["data_source"] == "emer"
    (row,) = read_rows(tmp_path / "rows" / "test.parquet")
    assert row["prompt"][0]["content"] == f"<video><audio>{instruction('Who cries?' + chr(10) + 'fear ,sad')}"
    assert prepare(*command, "--vocabulary", "authors") == 0
    (row,) = read_rows(tmp_path / "rows" / "train_sft.parquet")
    assert row["messages"][1]["content"].endswith("<answer>anxious</answer>")


def test_an_option_of_another_corpus_is_refused(tmp_path: Path, capsys) -> None:
    assert prepare("meld", "--root", tmp_path, "--fold", 2, "--out", tmp_path / "rows") == 2
    assert "--fold: meld has none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("video_only", ("<video>", None)), ("silence", ("<video><audio>", ["silence.flac"])), ("drop", None)],
)
@pytest.mark.parametrize("sound", ["missing", "cut"])
def test_rows_of_clips_without_sound_run_and_are_listed(
    tmp_path: Path, sound: str, policy: str, expected: tuple | None
) -> None:
    put_clip(tmp_path / "a.mp4")
    if sound == "cut":
        cut_sound(GOLDEN / "clips" / "landscape.mp4", tmp_path / "b.mp4")
    else:
        (tmp_path / "b.mp4").write_bytes((GOLDEN / "clips" / "noaudio.mp4").read_bytes())
    put_text(tmp_path / "mine.csv", "path,label,split\na.mp4,sad,train\nb.mp4,sad,train\n")
    command = ("csv", "--root", tmp_path, "--annotations", tmp_path / "mine.csv", "--out", tmp_path / "rows")
    assert prepare(*command, "--no-audio", policy) == 0
    assert (tmp_path / "rows" / "silent.txt").read_text() == f"{tmp_path / 'b.mp4'}\n"
    for name in ("train", "train_sft"):
        rows = read_rows(tmp_path / "rows" / f"{name}.parquet")
        found = [
            ((row.get("prompt") or row["messages"])[0]["content"].partition("As an")[0], row["audios"]) for row in rows
        ]
        assert len(found) == 2 - (expected is None)
        if expected:
            tags, audios = found[1]
            assert (tags, audios and [Path(file).name for file in audios]) == expected
        check_media(load_rows([str(tmp_path / "rows" / f"{name}.parquet")]))
