"""Clips are decoded and processed once, whoever asks; sharing never changes a result."""

import shutil
import threading
import time

import numpy as np
import pytest
import torch
from conftest import CASES
from transformers import AutoProcessor

import verl_omni.models  # noqa: F401
from verl_omni import sharing
from verl_omni.media import MediaError, read_audio, read_video
from verl_omni.sharing import ContentCache, read_audio_once, read_video_once


@pytest.fixture(autouse=True)
def empty_caches():
    for cache in (sharing.DECODED, sharing.PROCESSED):
        cache.clear()


def test_concurrent_requests_wait_for_one_computation():
    cache, runs, results = ContentCache(1000), [], []

    def compute():
        runs.append(1)
        time.sleep(0.1)
        return np.zeros(10)

    threads = [threading.Thread(target=lambda: results.append(cache.get("clip", compute))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 1
    assert len(results) == 8 and all(result is results[0] for result in results)


def test_cache_keeps_the_latest_within_its_bytes():
    cache = ContentCache(max_bytes=240)
    for key in (0, 1, 2, 0, 3):  # 80 bytes each: 3 stay, and 0 was used after 1 and 2
        cache.get(key, lambda: np.zeros(10))
    assert cache.nbytes == 240
    computed = []
    for key in (0, 2, 3, 1):
        cache.get(key, lambda key=key: computed.append(key) or np.zeros(10))
    assert computed == [1]


def test_too_large_a_value_is_returned_and_not_kept():
    cache = ContentCache(max_bytes=100)
    assert cache.get("large", lambda: np.ones(1000)).sum() == 1000
    assert cache.nbytes == 0


def test_a_failed_computation_is_tried_again(tmp_path):
    clip = tmp_path / "clip.mp4"
    for _ in range(2):
        with pytest.raises(MediaError, match="no such file"):
            read_video_once(clip, 8)
    shutil.copy(CASES["landscape"], clip)
    assert read_video_once(clip, 8).shape[0] == 8


def test_a_clip_is_decoded_once_and_is_what_reading_it_gives():
    clip = CASES["landscape"]
    assert read_video_once(clip, 8) is read_video_once(str(clip), 8)
    assert read_audio_once(clip) is read_audio_once(clip)
    assert np.array_equal(read_video_once(clip, 8), read_video(clip, 8))
    assert np.array_equal(read_audio_once(clip), read_audio(clip))
    assert len(read_video_once(clip, 4)) == 4  # other settings, other data


def test_shared_frames_can_not_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        read_video_once(CASES["landscape"], 8)[0] = 0


def test_a_changed_file_gives_new_data(tmp_path):
    clip = tmp_path / "clip.mp4"
    shutil.copy(CASES["landscape"], clip)
    before = read_video_once(clip, 8)
    shutil.copy(CASES["portrait"], clip)
    assert read_video_once(clip, 8).shape != before.shape


def test_a_changed_image_of_a_folder_gives_new_data(tmp_path):
    folder = tmp_path / "frames"
    shutil.copytree(CASES["frames_dir"], folder)
    before = read_video_once(folder, 8)
    *others, last = sorted(folder.iterdir())
    for image in others:
        shutil.copy(last, image)
    assert not np.array_equal(read_video_once(folder, 8), before)


def test_a_clip_is_processed_once_with_the_same_result(converted, monkeypatch):
    processor = AutoProcessor.from_pretrained(converted)
    clip = CASES["landscape"]
    plain = processor(text="x", videos=[read_video(clip)], audio=[read_audio(clip)], return_tensors="pt")
    runs = []
    for name in ("_process_frames", "_process_wave"):
        process = getattr(processor, name)
        monkeypatch.setattr(processor, name, lambda *a, process=process: runs.append(1) or process(*a))
    for _ in range(3):
        videos, audio = [read_video_once(clip, 8)], [read_audio_once(clip)]
        shared = processor(text="x", videos=videos, audio=audio, return_tensors="pt")
        assert all(torch.equal(shared[name], plain[name]) for name in plain)
        shared["pixel_values"].zero_()  # a caller's own copy
    assert len(runs) == 2
    processor(text="x", videos=videos, aspect_ratio="squash")
    assert len(runs) == 3


def test_the_switch_turns_sharing_off(monkeypatch):
    monkeypatch.setenv("VERL_OMNI_SHARING", "0")
    clip = CASES["landscape"]
    assert read_video_once(clip, 8) is not read_video_once(clip, 8)
