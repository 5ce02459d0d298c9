"""`python -m verl_omni check`, of rows, and `doctor`, of the installation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from verl_omni import plugin
from verl_omni.__main__ import main
from verl_omni.cli import doctor

CLIPS = Path(__file__).parent / "golden/clips"


def write_rows(path: Path, *clips: str) -> str:
    prompt = [{"role": "user", "content": "<video>Who is it?"}]
    label = {"data_source": "demo", "reward_model": {"ground_truth": "happy"}}
    path.write_text(json.dumps([{"prompt": prompt, "videos": [str(CLIPS / clip)], **label} for clip in clips]))
    return str(path)


def test_usable_rows_pass(tmp_path, capsys):
    rows = write_rows(tmp_path / "rows.json", "landscape.mp4", "clip.gif")
    assert main(["check", rows]) == 0
    assert "rows.json: 2 rows, all usable" in capsys.readouterr().out


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
    assert "took effect" in found["the plug-in's table"]["found"]
    assert all(finding["remedy"] for finding in found.values() if finding["status"] != "ok")


def test_each_thing_that_is_wrong_has_a_line_with_a_remedy(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(plugin.SUPPORTED, "verl", "<0.1")
    monkeypatch.setattr(doctor, "ENTRY_POINTS", ("no.such.group",))
    assert main(["doctor", "--json", "--model", str(tmp_path)]) == 1
    found = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert "0.9.1 is installed, verl_omni supports verl<0.1" in found["libraries"]["found"]
    for what in ("libraries", "no.such.group", "model"):
        assert found[what]["status"] == "error" and found[what]["remedy"]


@pytest.mark.slow
def test_a_plug_in_that_verl_does_not_load_is_an_error():
    environment = os.environ | {"VERL_USE_EXTERNAL_PLUGINS": "none"}
    command = [sys.executable, "-W", "ignore", "-m", "verl_omni", "doctor", "--json"]
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=300)
    assert process.returncode == 1
    found = {finding["what"]: finding for finding in json.loads(process.stdout)}
    loaded = found["loaded by verl"]
    assert loaded["status"] == "error" and "VERL_USE_EXTERNAL_PLUGINS" in loaded["remedy"]
