"""`python -m verl_omni check`: versions, registration, and rows."""

import json
from pathlib import Path

from verl_omni.__main__ import main

CLIPS = Path(__file__).parent / "golden/clips"


def write_rows(path: Path, *clips: str) -> str:
    prompt = [{"role": "user", "content": "<video>Who is it?"}]
    label = {"data_source": "demo", "reward_model": {"ground_truth": "happy"}}
    path.write_text(json.dumps([{"prompt": prompt, "videos": [str(CLIPS / clip)], **label} for clip in clips]))
    return str(path)


def test_installation_and_usable_rows_pass(tmp_path, capsys):
    rows = write_rows(tmp_path / "rows.json", "landscape.mp4", "clip.gif")
    assert main(["check", rows]) == 0
    output = capsys.readouterr().out
    assert "verl_omni.plugin" in output and "registered with verl" in output and "0.9.1" in output
    assert "rows.json: 2 rows, all usable" in output


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
