"""``infer``: one clip, with whatever senses it has."""

from pathlib import Path

import pytest
from taught_model import OTHER_QUESTION, Taught

from benchmarks.faults import claim_a_billion_frames
from verl_omni.__main__ import main
from verl_omni.cli.infer import senses_of
from verl_omni.data.files import read_rows
from verl_omni.media import MediaError
from verl_omni.models.families import FOLDERS, load

CLIPS = Path(__file__).parent / "golden" / "clips"


@pytest.fixture(scope="module", params=FOLDERS.values())
def tiny(request, tmp_path_factory) -> Path:
    return load(request.param).build_tiny(tmp_path_factory.mktemp("infer") / "tiny")


@pytest.mark.parametrize(
    ("name", "senses"),
    [
        ("landscape.mp4", ["video", "audio"]),
        ("noaudio.mp4", ["video"]),
        ("speech1.wav", ["audio"]),
        ("clip.gif", ["video"]),
        ("frames_dir", ["video"]),
    ],
)
def test_senses_are_what_the_file_has(name: str, senses: list[str]) -> None:
    assert senses_of(CLIPS / name) == senses


@pytest.mark.parametrize("name", ["broken.mp4", "none.mp4"])
def test_a_file_that_is_no_clip_is_named(name: str) -> None:
    with pytest.raises(MediaError, match=name):
        senses_of(CLIPS / name)


@pytest.mark.parametrize(
    ("name", "note"), [("landscape.mp4", ""), ("noaudio.mp4", "has picture only"), ("speech1.wav", "has sound only")]
)
def test_clips_with_one_sense_are_answered(tiny: Path, name: str, note: str, capsys) -> None:
    assert main(["infer", str(CLIPS / name), "--model", str(tiny), "--max-tokens", "4"]) == 0
    shown = capsys.readouterr()
    assert [line.split(":")[0] for line in shown.out.splitlines()] == ["think", "answer"]
    assert note in shown.err


def test_errors_name_the_file_and_the_remedy(tiny: Path, tmp_path: Path, capsys) -> None:
    assert main(["infer", str(CLIPS / "broken.mp4"), "--model", str(tiny)]) == 2
    assert "broken.mp4: not a media file" in capsys.readouterr().err
    assert main(["infer", str(CLIPS / "landscape.mp4"), "--model", str(tmp_path)]) == 2
    assert "no config.json in it; give a model directory" in capsys.readouterr().err


@pytest.mark.slow
def test_a_clip_that_makes_the_decoder_abort_is_named(tiny: Path, tmp_path: Path, capsys) -> None:
    killer = tmp_path / "killer.mp4"
    killer.write_bytes(claim_a_billion_frames((CLIPS / "landscape.mp4").read_bytes()))
    assert main(["infer", str(killer), "--model", str(tiny)]) == 2
    assert "killer.mp4: the decoder crashes (SIGABRT" in capsys.readouterr().err


@pytest.mark.slow
def test_think_and_answer_are_the_models_own(taught: Taught, capsys) -> None:
    for row in read_rows(taught.rows)[:4]:
        label = row["reward_model"]["ground_truth"]
        assert main(["infer", row["videos"][0], "--model", str(taught.model), "--max-tokens", "40"]) == 0
        assert capsys.readouterr().out == f"think:  The person is {label}.\nanswer: {label}\n"


@pytest.mark.slow
def test_another_question_reaches_the_model(taught: Taught, capsys) -> None:
    clip = read_rows(taught.rows)[0]["videos"][0]
    command = ["infer", clip, "--model", str(taught.model), "--max-tokens", "40", "--ask", OTHER_QUESTION]
    assert main(command) == 0
    assert capsys.readouterr().out.endswith("answer: nobody\n")
