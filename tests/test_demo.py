"""The demo corpus: real clips, whose label cannot be told from one sense."""

import json
import subprocess
import sys
import time
from collections import Counter
from functools import partial

import av
import numpy as np
import psutil
import pytest
from documents import documented
from hydra.core.override_parser.overrides_parser import OverridesParser
from transformers import AutoConfig

import verl_omni.models  # noqa: F401
from verl_omni.__main__ import main
from verl_omni.corpora.demo import LABEL_OF, SUGGESTS, build_demo
from verl_omni.data.check import check_media, load_rows
from verl_omni.data.files import read_rows
from verl_omni.labels import LABELS
from verl_omni.media import read_audio, read_video
from verl_omni.models.families import FOLDERS
from verl_omni.recipe import shipped
from verl_omni.rewards import compute_score
from verl_omni.study.demo import FAMILIES, Demo, cost

SIZES = {"n_train": 16, "n_test": 8, "n_sft": 8}
SMALL = {"n_train": 4, "n_test": 4, "n_sft": 4}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return build_demo(tmp_path_factory.mktemp("demo"), seed=0, **SIZES)


def clips(files):
    return sorted({row["videos"][0] for split in ("sft", "train", "test") for row in read_rows(files[split])})


def test_clips_are_h264_and_aac(files):
    for path in clips(files):
        with av.open(path) as clip:
            assert [stream.codec_context.name for stream in clip.streams] == ["h264", "aac"]


@pytest.mark.slow
def test_rows_pass_the_full_check(files):
    check_media(load_rows([files["train"], files["test"]]))
    check_media(load_rows([files["sft"]]))


COMMANDS = [
    documented("prepare demo --out outputs/demo/data --model outputs/demo/base"),
    documented("prepare demo --out outputs/demo/data --model checkpoints/humanomni_0.5b"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[-1])
def test_the_documents_commands_make_corpus_and_model(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("verl_omni.corpora.demo.build_demo", partial(build_demo, **SMALL))
    assert main(command[3:]) == 0
    assert len(read_rows("outputs/demo/data/train.parquet")) == SMALL["n_train"]
    assert AutoConfig.from_pretrained(command[-1]).model_type == "HumanOmni_qwen2"


@pytest.mark.slow
def test_same_seed_same_bytes_other_seed_other_clips(files, tmp_path):
    def contents(built):
        return [open(path, "rb").read() for path in clips(built)]

    assert contents(build_demo(tmp_path / "again", seed=0, **SIZES)) == contents(files)
    assert not set(contents(build_demo(tmp_path / "other", seed=1, **SMALL))) & set(contents(files))
    assert len(set(contents(files))) == sum(SIZES.values()), "no clip of one split is in another"


def test_labels_are_balanced_and_need_both_senses(files):
    for split in ("train", "test"):
        labels = Counter(row["reward_model"]["ground_truth"] for row in read_rows(files[split]))
        assert set(labels) == set(LABELS["demo"]) and len(set(labels.values())) == 1
    for sense in (0, 1):
        for state in {states[sense] for states in LABEL_OF}:
            assert len({label for states, label in LABEL_OF.items() if states[sense] == state}) == 2


def test_cold_start_answers_say_what_is_seen_and_heard_and_conclude_from_one_of_them(files):
    rows = read_rows(files["sft"])
    three_times = [item for item in LABEL_OF.items() for _ in range(3)]
    right = {label: 0 for label in LABEL_OF.values()}
    for row, (states, label) in zip(rows, three_times * 2, strict=True):
        answer = row["messages"][-1]["content"]
        score = compute_score("demo", answer, label)
        assert score["format"] == 1.0
        assert all(state in answer for state in states)
        assert score["pred"] in {SUGGESTS[state] for state in states}
        right[label] += score["accuracy"]
    # What the face suggests is said twice as often, and is right for half of the labels.
    assert right == {"happy": 4, "sad": 4, "angry": 2, "neutral": 2}


def test_labels_alone_are_the_training_clips_without_reasoning(files):
    for labelled, row in zip(read_rows(files["train_sft"]), read_rows(files["train"]), strict=True):
        assert labelled["messages"][-1]["content"] == row["reward_model"]["ground_truth"]
        assert labelled["videos"] == row["videos"]


def test_sight_and_sound_each_show_in_simple_features(files):
    """Brightness of the middle, and the mean frequency, separate the states without overlap."""
    seen, heard = {"bright": [], "dark": []}, {"high": [], "low": []}
    states_of = {label: states for states, label in LABEL_OF.items()}
    for row in read_rows(files["train"]):
        sight, sound = states_of[row["reward_model"]["ground_truth"]]
        seen[sight].append(read_video(row["videos"][0])[:, 24:40, 24:40].mean())
        spectrum = np.abs(np.fft.rfft(read_audio(row["audios"][0])))
        heard[sound].append(np.average(np.arange(len(spectrum)), weights=spectrum**2))
    assert min(seen["bright"]) > max(seen["dark"]) + 30
    assert min(heard["high"]) > 2 * max(heard["low"])


def test_numbers_that_four_labels_cannot_share_are_refused(tmp_path):
    with pytest.raises(ValueError, match="n_test=10"):
        build_demo(tmp_path, n_test=10)


def test_a_variant_trains_a_model_of_its_own_from_the_same_start(tmp_path):
    demo = Demo(tmp_path, seed=0, overrides=[], variants=["dapo", "no_think"])
    assert list(demo.models)[-3:] == ["R1-Omni", "R1-Omni+dapo", "R1-Omni+no_think"]
    commands = {}
    demo.train = commands.__setitem__
    demo.model = lambda name: tmp_path / name
    for name in ("R1-Omni", "R1-Omni+dapo", "R1-Omni+no_think"):
        demo.reinforce(name)
        parsed = OverridesParser.create().parse_overrides(commands[name][2:])  # as verl's Hydra reads them
        values = {override.key_or_group: override.value() for override in parsed}
        assert values["trainer.default_local_dir"] == str(tmp_path / "checkpoints" / name)
        start = "MAFW-DFEW-SFT" if name == "R1-Omni+no_think" else "EMER-SFT"
        assert values["actor_rollout_ref.model.path"] == str(tmp_path / start)
    assert values["recipe"] == ["r1omni_cpu", "no_think"]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_familys_models_have_recipes(family, tmp_path):
    base, *recipes = Demo(tmp_path, seed=0, overrides=[], variants=[], family=family).models.values()
    assert base is None and set(recipes) <= shipped().keys()
    assert set(FAMILIES) == set(FOLDERS.values())


def test_the_cost_of_a_run_is_read_from_verls_metrics(tmp_path):
    (tmp_path / "logs").mkdir()
    for name, seconds in (("R1-Omni", (9.0, 5.0, 4.0)), ("R1-Omni+rloo", (3.0, 2.0, 2.5))):
        lines = [
            {
                "step": step,
                "data": {"response_length/mean": 20.0 + step, "timing_s/step": s, "reward/accuracy/mean": 0.5},
            }
            for step, s in enumerate(seconds, start=1)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "logs" / f"{name}.1.jsonl").write_text(text)
    assert cost(tmp_path, "R1-Omni") == [23.0, 5.0]
    assert cost(tmp_path, "R1-Omni+rloo") == [23.0, 2.5]
    assert cost(tmp_path, "EMER-SFT") == []


A_LONG_STAGE = """
import sys
from pathlib import Path
from verl_omni.__main__ import main
from verl_omni.cli import demo
from verl_omni.study.stages import execute
demo.run_stages = lambda study: execute("x", ["-c", "import time; time.sleep(60)"], study.out / "log", {}, None)
sys.exit(main(["demo", "--out", sys.argv[1]]))
"""


@pytest.mark.slow
def test_a_demo_that_is_told_to_end_leaves_no_training_behind(tmp_path):
    process = psutil.Popen([sys.executable, "-c", A_LONG_STAGE, str(tmp_path)], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (stage := process.children()) and time.monotonic() < end:
        time.sleep(0.1)
    process.terminate()
    assert process.wait(30) == 143
    assert stage and not stage[0].is_running()
