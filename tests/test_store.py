"""Decoded media on disk: decoded once per corpus, the same bits, whoever asks."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from originals import CASES
from safetensors.numpy import load_file
from transformers import AutoProcessor

import verl_omni.models  # noqa: F401
from verl_omni.__main__ import main
from verl_omni.media import MediaError, read_audio, read_video, store
from verl_omni.media.child import Children
from verl_omni.media.resize import FrameFormat
from verl_omni.media.store import read_frames, read_sound
from verl_omni.models.humanomni.tiny import build_tiny

CLIPS = Path(__file__).parent / "golden/clips"
WHOLE = ("landscape.mp4", "portrait.mp4", "square.mp4", "short5.mp4")
FORMAT = FrameFormat()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("VERL_OMNI_MEDIA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch) -> list:
    """The files that the real decoders are called with, in this process."""
    calls = []
    for name in ("read_video", "read_audio"):
        read = getattr(store, name)
        monkeypatch.setattr(store, name, lambda source, *args, read=read: calls.append(source) or read(source, *args))
    return calls


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return AutoProcessor.from_pretrained(build_tiny(tmp_path_factory.mktemp("model")))


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def rows_file(path: Path, *clips: str | Path) -> str:
    prompt = [{"role": "user", "content": "<video><audio>Who is it?"}]
    label = {"data_source": "demo", "reward_model": {"ground_truth": "happy"}}
    rows = [{"prompt": prompt, "videos": [str(CLIPS / c)], "audios": [str(CLIPS / c)], **label} for c in clips]
    path.write_text(json.dumps(rows))
    return str(path)


@pytest.mark.parametrize("aspect_ratio", ["pad", "squash"])
@pytest.mark.parametrize("case", ["landscape", "portrait", "square", "short5", "gif5", "frames_dir"])
def test_the_model_sees_the_same_pixels(case, aspect_ratio, processor, folder, decoded):
    clip, wanted = CASES[case], (8, processor.frame_format(aspect_ratio))
    first, kept = read_frames(clip, *wanted), read_frames(clip, *wanted)
    assert decoded == [clip] and np.array_equal(first, kept) and kept.dtype == np.uint8
    plain = processor.process_frames(read_video(clip), aspect_ratio)
    for frames in (first, kept):
        assert torch.equal(processor.process_frames(frames, aspect_ratio), plain)


@pytest.mark.parametrize("name", ["landscape.mp4", "shortaudio.mp4", "speech1.wav"])
def test_the_model_hears_the_same_mel(name, processor, folder, decoded):
    first, kept, plain = read_sound(CLIPS / name), read_sound(CLIPS / name), read_audio(CLIPS / name)
    assert decoded == [CLIPS / name] and first.tobytes() == kept.tobytes() == plain.tobytes()
    assert torch.equal(processor.process_wave(kept, 16000), processor.process_wave(plain, 16000))


def test_entries_are_small_safetensors_files(folder):
    read_frames(CLIPS / "landscape.mp4", 8, FORMAT)
    read_sound(CLIPS / "landscape.mp4")
    assert sum(entry.stat().st_size for entry in entries(folder)) <= 1.6e6
    assert sorted(load_file(entry)["media"].dtype.name for entry in entries(folder)) == ["float32", "uint8"]


def test_other_settings_are_other_entries(folder, decoded):
    clip = CLIPS / "landscape.mp4"
    formats = [
        FORMAT,
        FrameFormat(colour=None),
        FrameFormat(colour=(0, 0, 0)),
        FrameFormat((64, 64)),
        FrameFormat(resample=2),
    ]
    seen = [read_frames(clip, *wanted) for wanted in [(8, format) for format in formats] + [(4, FORMAT)]]
    assert len(decoded) == len(entries(folder)) == 6
    assert len({frames.tobytes() for frames in seen}) == 6


def test_a_copy_is_known_by_its_content_and_a_changed_file_is_noticed(tmp_path, folder, decoded):
    clip = tmp_path / "clip.mp4"
    shutil.copy(CLIPS / "landscape.mp4", clip)
    read_frames(CLIPS / "landscape.mp4", 8, FORMAT)
    read_frames(clip, 8, FORMAT)
    assert decoded == [CLIPS / "landscape.mp4"]
    stat = clip.stat()
    clip.write_bytes((CLIPS / "portrait.mp4").read_bytes().ljust(stat.st_size, b"\0"))  # the same size
    os.utime(clip, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # and time of writing
    assert np.array_equal(read_frames(clip, 8, FORMAT), read_frames(CLIPS / "portrait.mp4", 8, FORMAT))


def test_another_suffix_may_mean_another_decoder(tmp_path, folder, decoded):
    shutil.copy(CLIPS / "speech1.wav", tmp_path / "speech.m4a")
    read_sound(CLIPS / "speech1.wav")
    read_sound(tmp_path / "speech.m4a")
    assert len(decoded) == 2


def test_a_file_replaced_while_it_is_decoded_is_not_kept(tmp_path, folder, monkeypatch):
    clip = tmp_path / "clip.mp4"
    shutil.copy(CLIPS / "landscape.mp4", clip)

    def replaced(source, num_frames):
        shutil.copy(CLIPS / "portrait.mp4", clip)
        return read_video(source, num_frames)

    monkeypatch.setattr(store, "read_video", replaced)
    read_frames(clip, 8, FORMAT)
    assert entries(folder) == []


def test_damaged_and_missing_clips_are_not_kept(tmp_path, folder, decoded):
    for clip in (CLIPS / "broken.mp4", tmp_path / "none.mp4"):
        for _ in range(2):
            with pytest.raises(MediaError, match=clip.name):
                read_frames(clip, 8, FORMAT)
    assert len(decoded) == 4 and entries(folder) == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "rubbish"])
def test_a_damaged_entry_is_made_anew_and_named(damage, folder, decoded, caplog):
    clip = CLIPS / "landscape.mp4"
    first = read_frames(clip, 8, FORMAT)
    (entry,) = entries(folder)
    data = entry.read_bytes()
    flipped = data[:-1000] + bytes([data[-1000] ^ 1]) + data[-999:]
    entry.write_bytes({"cut": data[:-1], "flipped": flipped, "empty": b"", "rubbish": b"\x08" + bytes(99)}[damage])
    assert np.array_equal(read_frames(clip, 8, FORMAT), first) and len(decoded) == 2
    assert str(entry) in caplog.text and "made anew" in caplog.text
    assert np.array_equal(read_frames(clip, 8, FORMAT), first) and len(decoded) == 2


def test_what_was_not_used_for_longest_gives_way(folder, monkeypatch):
    clips = [CLIPS / name for name in WHOLE[:3]]
    monkeypatch.setenv("VERL_OMNI_MEDIA_CACHE_GB", "0.0027")  # two clips' frames of 1.2 MB
    for age, clip in zip((9, 8), clips, strict=False):
        read_frames(clip, 8, FORMAT)
        (newest,) = [entry for entry in entries(folder) if time.time() - entry.stat().st_mtime < 3600]
        os.utime(newest, (time.time() - age * 7200,) * 2)
    read_frames(clips[0], 8, FORMAT)  # used again
    read_frames(clips[2], 8, FORMAT)
    sources = set(entries(folder))
    kept = store.store()
    assert sources == {kept.entry(clip, ("video", 8, FORMAT)) for clip in (clips[0], clips[2])}
    assert sum(entry.stat().st_size for entry in entries(folder)) <= 2.7e6


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_said_and_does_not_stop_reading(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VERL_OMNI_MEDIA_CACHE", str(tmp_path / "file"))
    assert len(read_frames(CLIPS / "landscape.mp4", 8, FORMAT)) == 8
    assert "landscape.mp4" in caplog.text and main(["check", rows_file(tmp_path / "rows.json", "landscape.mp4")]) == 0


@pytest.mark.parametrize("switch", ["VERL_OMNI_MEDIA_CACHE", "VERL_OMNI_SHARING"])
def test_switched_off_nothing_is_kept(switch, folder, decoded, monkeypatch):
    monkeypatch.setenv(switch, "0")
    for _ in range(2):
        read_sound(CLIPS / "landscape.mp4")
    assert len(decoded) == 2 and not folder.exists()


def test_a_second_check_decodes_nothing_and_says_so(tmp_path, folder, capsys):
    rows = rows_file(tmp_path / "rows.json", *WHOLE[:2])
    assert main(["check", rows]) == 0
    assert "media files: 4 decoded, 0 from" in capsys.readouterr().err
    assert main(["check", rows]) == 0
    assert f"media files: 0 decoded, 4 from {folder}" in capsys.readouterr().err


def test_what_was_only_read_is_still_checked_in_full(tmp_path, folder, capsys):
    read_frames(CLIPS / "landscape.mp4", 8, FORMAT)
    read_sound(CLIPS / "landscape.mp4")
    assert main(["check", rows_file(tmp_path / "rows.json", "landscape.mp4")]) == 0
    assert "media files: 2 decoded" in capsys.readouterr().err


def test_a_clip_that_is_damaged_between_the_frames_is_named_by_each_check(tmp_path, folder, capsys):
    data = bytearray((CLIPS / "landscape.mp4").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = np.random.default_rng(0).bytes(3000)
    (tmp_path / "bad.mp4").write_bytes(data)
    rows = rows_file(tmp_path / "rows.json", tmp_path / "bad.mp4")
    for _ in range(2):
        assert main(["check", rows]) == 1
        assert "bad.mp4" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_that_start_with_one_corpus_decode_it_once(tmp_path, folder):
    rows = rows_file(tmp_path / "rows.json", *WHOLE)
    command = [sys.executable, "-m", "verl_omni", "check", rows]
    checks = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(check.communicate(timeout=120)[1].partition("media files: ")[2].split(" from")[0] for check in checks)
    assert said == ["0 decoded, 8", "8 decoded, 0"] and [check.returncode for check in checks] == [0, 0]


@pytest.mark.slow
def test_processes_fill_one_folder_without_a_lock(folder):
    program = (
        "import sys; from verl_omni.media.store import *\n"
        "for clip in sys.argv[1:] * 5:\n"
        "    read_frames(clip, 8, FrameFormat())\n"
        "    [entry.unlink(missing_ok=True) for entry in store().folder.rglob('*.safetensors')]"
    )
    clips = [str(CLIPS / name) for name in WHOLE]
    fillers = [subprocess.Popen([sys.executable, "-c", program, *clips], stderr=subprocess.PIPE) for _ in range(2)]
    said = [filler.communicate(timeout=120)[1] for filler in fillers]
    assert [filler.returncode for filler in fillers] == [0, 0] and b"damaged" not in b"".join(said)


def test_training_and_evaluation_decode_nothing_after_a_check(tmp_path, folder, processor, decoded, monkeypatch):
    pytest.importorskip("verl")
    from verl_omni.data.check import load_rows
    from verl_omni.data.dataset import OmniRLHFDataset, checked_rows, fill_in_frames
    from verl_omni.data.row import PromptRow
    from verl_omni.evaluation.answering import Settings, load

    rows = rows_file(tmp_path / "rows.json", "landscape.mp4")
    config = OmegaConf.create({})
    fill_in_frames(config, processor)
    checked_rows([rows], PromptRow, "prompt", config, -1)
    monkeypatch.setattr(Children, "call", lambda *_, **__: pytest.fail("decoded again, in a child"))
    (row,) = load_rows([rows])
    _, ((frames, _),), (wave,) = OmniRLHFDataset._process_multi_modal_info(row.conversation(), 16, config)
    _, request = load(row, [], processor, Children().call, Settings())
    assert decoded == []
    media = request["multi_modal_data"]
    assert np.array_equal(media["video"][0][0], frames) and np.array_equal(media["audio"][0], wave)
    plain = processor.process_frames(read_video(CLIPS / "landscape.mp4"))
    assert torch.equal(processor.process_frames(frames), plain)
