"""What the benchmark counts on verl's own functions: a prompt's clip is decoded, processed and moved once."""

import json

import pytest
import torch
from originals import CASES
from transformers import AutoModelForCausalLM

pytest.importorskip("verl")

from benchmarks import clip as clips
from benchmarks import memory, prompt, ranks, step, training, variants
from benchmarks.__main__ import verdict
from verl_omni.media import cache
from verl_omni.models.humanomni.tiny import build_tiny


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return clips.load_processor(build_tiny(tmp_path_factory.mktemp("model")))


@pytest.mark.slow
def test_a_prompts_clip_is_decoded_processed_and_moved_once(processor):
    figures = prompt.measure_prompt(CASES["landscape"], processor)
    assert figures["decodes a prompt"] == {"plain": 8, "now": 1}
    assert figures["runs over a prompt's media"] == {"plain": 24, "now": 1}
    moved = figures["MB through TransferQueue a rollout"]
    assert moved["plain"] > 4 * 6.3  # one way in, and out again in each of three passes
    assert moved["now"] * 8 <= moved["plain"]


@pytest.mark.slow
def test_the_originals_way_gives_the_same_pixels_and_mel(processor):
    torch.set_num_threads(1)
    assert set(clips.measure_clip(CASES["landscape"], processor)) == {
        "decode, ms", "frames to pixels, ms", "sound to mel, ms"
    }  # fmt: skip


@pytest.mark.slow
def test_host_memory_stays_flat_once_the_cache_is_full(processor, tmp_path, monkeypatch):
    for kept in ("DECODED", "PROCESSED"):
        monkeypatch.setattr(cache, kept, cache.ContentCache(max_bytes=8 * 2**20))
    clip = clips.make_clip(tmp_path / "clip.mp4", 320, 240)  # 1.8 MiB
    growth = memory.measure_decodes(clip, processor, decodes=25, warm_up=5)["memory over 25 decodes, MiB"]
    assert growth["now"] < 60  # and 200 if all were kept


def test_targets_are_judged():
    assert verdict("decodes a prompt", plain=8, now=1) == "at most 1: met"
    assert "missed" in verdict("clip to model inputs, ms", plain=5, now=2)
    assert verdict("a whole step of a prompt, s", plain=1, now=2, original=11).endswith("5: met (5.5)")
    assert verdict("decode, ms", plain=5, now=2) == ""


def test_ranks_encode_each_prompt_once_and_are_balanced_to_a_percent():
    figures = ranks.measure_ranks(8)
    assert figures["clips encoded a step, 8 ranks"] == {"plain": pytest.approx(84, abs=1), "now": 16}
    assert figures["above a rank's mean, 8 ranks, %"]["now"] < 1.5


@pytest.mark.slow
def test_a_second_start_decodes_nothing(tmp_path):
    figures = clips.measure_second_start([CASES["landscape"]], tmp_path)
    assert figures == {"media files that a second start decodes": {"plain": 2, "now": 0}}


@pytest.mark.slow
def test_the_originals_update_is_ours(tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(build_tiny(tmp_path)).train()
    batch = training.synthetic_batch(model.config)
    gradients = []
    for original in (True, False):
        monkeypatch.setenv("VERL_OMNI_SHARING", "0" if original else "1")
        if original:
            step.step_of_trl(model, model, batch, prompt=batch["input_ids"].shape[1] - step.ANSWER)
        else:
            training.step(model, model, batch)
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_variants_of_grpo_stand_side_by_side_with_a_figure_for_each_seed(tmp_path, monkeypatch, capsys):
    for seed, accuracy in ((0, 96.875), (1, 100.0)):
        folders = [tmp_path / str(seed) / name for name in ("results", "logs")]
        for folder in folders:
            folder.mkdir(parents=True)
        for name, contradicting in (("R1-Omni", 43), ("R1-Omni+explanation", seed)):
            scores = [
                {"variant": "audio_muted", "war": 50.0},
                {"variant": "normal", "war": accuracy, "epc": 98.4, "consistency": {"contradicting": contradicting}},
            ]
            (folders[0] / f"{name}.scores.json").write_text(json.dumps(scores))
            lines = [
                json.dumps({"step": step, "data": {"response_length/mean": 20 + step, "timing_s/step": step}})
                for step in (1, 2, 6)
            ]
            (folders[1] / f"{name}.1.jsonl").write_text("\n".join(lines) + "\n")
    picture = tmp_path / "variants.png"
    arguments = [str(tmp_path / "0"), str(tmp_path / "1"), "--picture", str(picture)]
    monkeypatch.setattr("sys.argv", ["benchmarks.variants", *arguments])
    assert variants.main() == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if "R1-Omni" in line]
    assert rows == [
        "| R1-Omni | 96.9, 100.0 | 98.4, 98.4 | 43, 43 | 26.0, 26.0 | 2.0, 2.0 |",
        "| R1-Omni+explanation | 96.9, 100.0 | 98.4, 98.4 | 0, 1 | 26.0, 26.0 | 2.0, 2.0 |",
    ]
    assert picture.stat().st_size > 10_000
