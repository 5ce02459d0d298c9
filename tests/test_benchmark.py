"""What the benchmark counts on verl's own functions: a prompt's clip is decoded, processed and moved once."""

import pytest
import torch
from conftest import CASES

pytest.importorskip("verl")

from benchmarks import clip as clips
from benchmarks import memory, prompt
from benchmarks.__main__ import verdict
from verl_omni.models.humanomni.tiny import build_tiny


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return clips.load_processor(build_tiny(tmp_path_factory.mktemp("model")))


def test_a_prompts_clip_is_decoded_processed_and_moved_once(processor):
    figures = prompt.measure_prompt(CASES["landscape"], processor)
    assert figures["decodes a prompt"] == {"plain": 8, "now": 1}
    assert figures["runs over a prompt's media"] == {"plain": 24, "now": 1}
    moved = figures["MB through TransferQueue a rollout"]
    assert moved["plain"] > 4 * 6.3  # one way in, and out again in each of three passes
    assert moved["now"] * 8 <= moved["plain"]


def test_the_originals_way_gives_the_same_pixels_and_mel(processor):
    torch.set_num_threads(1)
    assert set(clips.measure_clip(CASES["landscape"], processor)) == {
        "decode, ms", "frames to pixels, ms", "sound to mel, ms"
    }  # fmt: skip


def test_host_memory_stays_flat(processor, tmp_path):
    clip = clips.make_clip(tmp_path / "clip.mp4", 64, 48)
    growth = memory.measure_decodes(clip, decodes=200)["memory over 200 decodes, MiB"]
    assert growth["now"] < 30  # the cache is not full yet: 74 KB a clip


def test_targets_are_judged():
    assert verdict("decodes a prompt", plain=8, now=1) == "at most 1: met"
    assert "missed" in verdict("clip to model inputs, ms", plain=5, now=2)
    assert verdict("decode, ms", plain=5, now=2) == ""
