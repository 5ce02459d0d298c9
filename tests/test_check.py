"""``python -m verl_omni check``, of rows, and ``doctor``, of the installation."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import documented
from transformers import AutoProcessor

from verl_omni import plugin
from verl_omni.__main__ import main
from verl_omni.cli import doctor
from verl_omni.data import files
from verl_omni.data.row import conversation
from verl_omni.models import families
from verl_omni.models.humanomni.tiny import build_tiny

CLIPS = Path(__file__).parent / "golden/clips"


def write_rows(path: Path, *clips: str) -> str:
    prompt = [{"role": "user", "content": "<video>Who is it?"}]
    label = {"data_source": "demo", "reward_model": {"ground_truth": "happy"}}
    path.write_text(json.dumps([{"prompt": prompt, "videos": [str(CLIPS / clip)], **label} for clip in clips]))
    return str(path)


def test_usable_rows_pass(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.json", "landscape.mp4", "clip.gif")
    files.write_rows(files.read_rows("rows.json"), Path("rows.parquet"))
    assert main(documented("check rows.parquet")[3:]) == 0
    assert "rows.parquet: 2 rows, all usable" in capsys.readouterr().out


def test_every_rows_file_is_checked_and_any_problem_fails(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    bad = write_rows(tmp_path / "bad.json", "landscape.mp4", "broken.mp4")
    good = write_rows(tmp_path / "good.json", "landscape.mp4")
    assert main(["check", bad, str(tmp_path / "gone.json"), str(tmp_path / "config.json"), good]) == 1
    captured = capsys.readouterr()
    assert "bad.json row 1" in captured.err and "broken.mp4: the video does not decode" in captured.err
    assert "gone.json" in captured.err
    assert "config.json: a list of rows was expected" in captured.err
    assert "good.json: 1 rows, all usable" in captured.out


def test_media_check_exists_decodes_nothing(tmp_path):
    assert main(["check", write_rows(tmp_path / "rows.json", "broken.mp4"), "--media-check", "exists"]) == 0


def test_a_complete_installation_is_in_order(capsys, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    status = main(["doctor", "--json", "--model", str(tmp_path)])
    found = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}
    errors = {what for what, finding in found.items() if finding["status"] == "error"}
    assert errors <= {"/dev/shm"} and status == bool(errors)
    assert found["verl"]["found"] == "0.9.1" and found["verl.plugins"]["found"] == "verl_omni.plugin"
    assert found["loaded by verl"]["status"] == "ok" and "took effect" in found["the plug-in's table"]["found"]
    assert all(finding["remedy"] for finding in found.values() if finding["status"] != "ok")


def test_each_thing_that_is_wrong_has_a_line_with_a_remedy(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(plugin.SUPPORTED, "verl", "<0.1")
    monkeypatch.setattr(doctor, "ENTRY_POINTS", ("no.such.group",))
    assert main(["doctor", "--json", "--model", str(tmp_path)]) == 1
    found = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert "0.9.1 is installed, verl_omni supports verl<0.1" in found["libraries"]["found"]
    for what in ("libraries", "no.such.group", "model"):
        assert found[what]["status"] == "error" and found[what]["remedy"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Iterator[Path]:
    """A model, and a cache, so that the clips of its rows are decoded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERL_OMNI_MEDIA_CACHE", str(tmp_path_factory.mktemp("media")))
        yield build_tiny(tmp_path_factory.mktemp("tiny"))


def rows_to_train_on(path: Path, kind: str, *clips: str) -> str:
    turns = [{"role": "user", "content": "<video><audio>Which emotion does the person show?"}]
    if kind == "messages":
        columns = {
            "messages": [*turns, {"role": "assistant", "content": "<think>A smile.</think><answer>happy</answer>"}]
        }
    else:
        columns = {"prompt": turns, "data_source": "demo", "reward_model": {"ground_truth": "happy"}}
    media = [{"videos": [str(CLIPS / clip)], "audios": [str(CLIPS / clip)]} for clip in clips]
    path.write_text(json.dumps([columns | files for files in media]))
    return str(path)


def fit(name: str, tiny: Path, rows: str, *overrides: str) -> dict[str, doctor.Finding]:
    model = ("" if "sft" in name else "actor_rollout_ref.") + f"model.path={tiny}"
    grpo = [f"data.val_files=[{rows}]", "actor_rollout_ref.actor.ppo_mini_batch_size=2"]
    for of in ("actor.ppo", "ref.log_prob", "rollout.log_prob"):
        grpo.append(f"actor_rollout_ref.{of}_micro_batch_size_per_gpu=1")
    grpo = [] if "sft" in name else grpo
    overrides = [model, f"data.train_files=[{rows}]", *grpo, "data.train_batch_size=2", *overrides]
    return {finding.what: finding for finding in doctor.attempted(doctor.recipe, name, overrides)}


@pytest.mark.parametrize(("name", "kind"), [("r1omni_cpu", "prompt"), ("emer_sft_cpu", "messages")])
def test_rows_and_model_that_fit_a_recipe_are_in_order(name, kind, tiny, tmp_path):
    found = fit(name, tiny, rows_to_train_on(tmp_path / "rows.json", kind, *["landscape.mp4"] * 5))
    assert {finding.status for finding in found.values()} == {"ok"}, found
    processor = AutoProcessor.from_pretrained(tiny)
    turns = json.loads((tmp_path / "rows.json").read_text())[0][kind]
    message = conversation(turns, [str(CLIPS / "landscape.mp4")], [str(CLIPS / "landscape.mp4")])
    for item in message[0]["content"]:
        item |= {"path": item[item["type"]]} if item["type"] != "text" else {}
    ids = processor.apply_chat_template(
        message, tokenize=True, return_dict=True, add_generation_prompt=kind == "prompt", return_tensors="pt"
    )["input_ids"]
    longest = f"the longest {ids.shape[1]} tokens if its media are as the first clip's"
    assert found["train rows"].found == f"5 rows, {longest}, 2 steps an epoch"


@pytest.mark.parametrize(("name", "kind"), [("r1omni", "prompt"), ("emer_sft", "messages")])
def test_another_familys_recipe_is_looked_at_too(name, kind, tmp_path, tmp_path_factory):
    tiny = families.load("qwen2_5_omni").build_tiny(tmp_path_factory.mktemp("qwen2_5_omni"))
    found = fit(f"{name}_qwen2_5_omni_cpu", tiny, rows_to_train_on(tmp_path / "rows.json", kind, "landscape.mp4"))
    assert "1 rows, the longest " in found["train rows"].found
    assert found["train rows"].remedy.startswith("data.train_batch_size is 2")


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (
            [
                "data.max_prompt_length=64",
                "trainer.device=cuda",
                "trainer.n_gpus_per_node=16",
                "data.val_batch_size=100000000",
            ],
            {
                "train rows": "data.max_prompt_length=",
                "devices": "trainer.n_gpus_per_node",
                "a step's clips": "--ipc=host",
            },
        ),
        (["data.train_batch_size=1"], {"recipe": "must be >= actor.ppo_mini_batch_size (2)"}),
        (["data.train_batch_size=8"], {"train rows": "data.train_batch_size is 8"}),
        (["+data.num_frames=4"], {"training rows": "data.num_frames=4, and the model has 8"}),
        (["data.train_files=[gone.parquet]"], {"recipe": "data.train_files: gone.parquet"}),
        (["actor_rollout_ref.actor.strategy=fsdp"], {"recipe": "FSDP1 flattens"}),
        (["actor_rollout_ref.actor.use_kl=true"], {"recipe": "use_kl"}),
        (["actor_rollout_ref.model.path=/"], {"recipe": "/"}),
    ],
)
def test_what_does_not_fit_a_recipe_has_a_line_with_a_remedy(overrides, messages, tiny, tmp_path):
    rows = rows_to_train_on(tmp_path / "rows.json", "prompt", *["landscape.mp4"] * 5)
    found = fit("r1omni_cpu", tiny, rows, *overrides)
    for what, message in messages.items():
        finding = found[what]
        assert finding.status == "error" and message in f"{finding.found} {finding.remedy}" and finding.remedy


def test_doctor_decodes_the_rows_of_a_recipe_and_fails(tiny, tmp_path, capsys):
    rows = rows_to_train_on(tmp_path / "rows.json", "messages", "landscape.mp4", "broken.mp4")
    overrides = [f"model.path={tiny}", f"data.train_files=[{rows}]", "data.train_batch_size=2"]
    assert main(["doctor", "--json", "--recipe", "emer_sft_cpu", *overrides]) == 1
    found = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert "rows.json row 1" in found["training rows"]["found"] and "broken.mp4" in found["training rows"]["found"]


@pytest.mark.slow
def test_a_plug_in_that_verl_does_not_load_is_an_error():
    environment = os.environ | {"VERL_USE_EXTERNAL_PLUGINS": "none"}
    look = "import json; from verl_omni.cli.doctor import plug_in; print(json.dumps(vars(plug_in()[0])))"
    command = [sys.executable, "-W", "ignore", "-c", look]
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    loaded = json.loads(process.stdout)
    assert loaded["what"] == "loaded by verl" and loaded["status"] == "error"
    assert "VERL_USE_EXTERNAL_PLUGINS" in loaded["remedy"]
