"""Clips are decoded and processed once, whoever asks; sharing never changes a result."""

import shutil
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from originals import CASES
from transformers import AutoModelForCausalLM, AutoProcessor

import verl_omni.models  # noqa: F401
from verl_omni.adjustments.verl_clips_once import store_clips_once
from verl_omni.media import MediaError, cache, read_audio, read_video
from verl_omni.media.cache import ContentCache, read_audio_once, read_video_once
from verl_omni.models import tower_outputs
from verl_omni.models.humanomni.towers import HumanOmniTowers
from verl_omni.models.tower_outputs import TOWER_OUTPUTS


@pytest.fixture(autouse=True)
def empty_caches():
    for kept in (cache.DECODED, cache.PROCESSED):
        kept.clear()


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
    assert cache._values.currsize == 240
    computed = []
    for key in (0, 2, 3, 1):
        cache.get(key, lambda key=key: computed.append(key) or np.zeros(10))
    assert computed == [1]


def test_too_large_a_value_is_returned_and_not_kept():
    cache = ContentCache(max_bytes=100)
    assert cache.get("large", lambda: np.ones(1000)).sum() == 1000
    assert cache._values.currsize == 0


def test_a_value_that_is_dropped_between_two_looks_is_not_there():
    """``find`` answers in one step: whoever asks while others fill the cache gets the value, or None."""
    cache = ContentCache(max_bytes=800)
    found, stop = [], threading.Event()

    def fill() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            cache.get(number % 40, lambda number=number: np.full(10, number % 40))

    threads = [threading.Thread(target=fill) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(20_000):
            value = cache.find(number % 40)
            found.append(value is None or value[0] == number % 40)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert all(found)


def test_installing_the_clips_adjustment_twice_changes_nothing():
    put = get = clear = read = object()
    tq = SimpleNamespace(async_kv_batch_put=put, async_kv_batch_get=get, kv_clear=clear)
    utils = SimpleNamespace(tq=tq, _async_meta_to_realdata=read)
    store_clips_once(utils)
    once = {**vars(tq), **vars(utils)}
    store_clips_once(utils)
    assert {**vars(tq), **vars(utils)} == once and tq.kv_clear is not clear


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


# ---------------------------------------------------------------- towers


@pytest.fixture(scope="module")
def model(converted):
    return AutoModelForCausalLM.from_pretrained(converted)


def rollouts(converted, *clips) -> dict[str, torch.Tensor]:
    """A batch as verl makes it: one row per rollout, of which some have the same clip, or the same but its question."""
    processor = AutoProcessor.from_pretrained(converted)
    rows = []
    for case, question in clips:
        clip = CASES[case]
        content = [{"type": "video", "path": clip}, {"type": "audio", "path": clip}, {"type": "text", "text": question}]
        rows.append(
            processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
            )
        )
    length = max(row["input_ids"].shape[1] for row in rows)
    batch = {name: torch.cat([row[name] for row in rows]) for name in rows[0] if name not in PADDED}
    for name in PADDED:
        batch[name] = torch.cat([F.pad(row[name], (0, length - row[name].shape[1])) for row in rows])
    return batch


PADDED = ("input_ids", "attention_mask")
PROMPTS = [("landscape", "How?"), ("square", "How?"), ("landscape", "How?"), ("landscape", "Who?"), ("square", "How?")]


@pytest.fixture
def encoded(monkeypatch):
    """Counts the clips that go through each tower."""
    TOWER_OUTPUTS.clear()
    tower_outputs.TRAINED.clear()
    counts = {"encode_video": 0, "encode_audio": 0}

    def count(name: str) -> None:
        encode = getattr(HumanOmniTowers, name)

        def counting(self, inputs):
            counts[name] += len(inputs)
            return encode(self, inputs)

        monkeypatch.setattr(HumanOmniTowers, name, counting)

    for name in counts:
        count(name)
    return counts


def loss_and_gradients(model, batch):
    model.zero_grad()
    weights = torch.arange(1, len(batch["input_ids"]) + 1)[:, None]  # no two rollouts have the same advantage
    loss = (model(**batch).logits.logsumexp(-1) * weights * batch["attention_mask"]).mean()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_equal_those_without_sharing(model, converted, encoded, monkeypatch):
    batch = rollouts(converted, *PROMPTS)
    shared = [loss_and_gradients(model, batch) for _ in range(2)]
    assert encoded == {"encode_video": 2, "encode_audio": 2}  # of 10 each
    monkeypatch.setenv("VERL_OMNI_SHARING", "0")
    plain_loss, plain = loss_and_gradients(model, batch)
    assert encoded == {"encode_video": 7, "encode_audio": 7}
    for loss, gradients in shared:
        torch.testing.assert_close(loss, plain_loss, atol=1e-5, rtol=1e-5)
        assert gradients.keys() == plain.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, plain[name], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_actor_and_reference_share_the_towers_outputs(model, converted, encoded):
    batch, reference = rollouts(converted, *PROMPTS), AutoModelForCausalLM.from_pretrained(converted)
    assert torch.equal(model(**batch).logits, reference(**batch).logits)
    assert encoded == {"encode_video": 2, "encode_audio": 2}


def test_an_update_drops_its_clips_outputs_and_no_others(model, converted, encoded):
    """With several updates a step, later ones still find what log-probabilities and reference have left."""
    trained, later = rollouts(converted, PROMPTS[0], PROMPTS[2]), rollouts(converted, PROMPTS[1])
    with torch.no_grad():
        model(**trained), model(**later)
    kept = TOWER_OUTPUTS._values.currsize
    loss_and_gradients(model, trained)
    assert TOWER_OUTPUTS._values.currsize == kept
    torch.optim.SGD(model.parameters(), lr=0.0).step()
    assert TOWER_OUTPUTS._values.currsize == kept / 2
    loss_and_gradients(model, later)
    assert encoded == {"encode_video": 2, "encode_audio": 2}
    torch.optim.SGD(model.parameters(), lr=0.0).step()
    assert TOWER_OUTPUTS._values.currsize == 0


def load(model):
    state = {name: tensor * 1.1 if "vision_tower" in name else tensor for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)


def scale_in_place(model):
    for parameter in model.model.vision_tower.parameters():
        parameter.mul_(1.1)


@pytest.mark.parametrize("change", [load, scale_in_place])
@torch.no_grad()
def test_other_tower_weights_give_other_features(change, converted, encoded):
    batch, model = rollouts(converted, PROMPTS[0]), AutoModelForCausalLM.from_pretrained(converted)
    before = model(**batch).logits
    change(model)
    after = model(**batch).logits
    assert encoded == {"encode_video": 2, "encode_audio": 1}
    TOWER_OUTPUTS.clear()
    assert not torch.allclose(before, after)
    assert torch.equal(model(**batch).logits, after)


@torch.no_grad()
def test_a_pixel_makes_another_clip(model, converted, encoded):
    batch = rollouts(converted, PROMPTS[0], PROMPTS[0])
    batch["pixel_values"][1, -1, -1, -1, -1] += 2**-20
    batch["input_features"][1, 0, 0] += 2**-20
    model(**batch)
    assert encoded == {"encode_video": 2, "encode_audio": 2}


def test_outputs_of_inference_mode_are_not_kept_for_training(model, converted, encoded):
    batch = rollouts(converted, PROMPTS[0])
    with torch.inference_mode():
        model(**batch)
    loss_and_gradients(model, batch)
    assert encoded == {"encode_video": 2, "encode_audio": 2}


@torch.no_grad()
def test_sharing_in_bfloat16_is_not_sharing_of_float32(model, converted, encoded):
    batch = rollouts(converted, PROMPTS[0])
    model(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**batch)
    assert encoded == {"encode_video": 2, "encode_audio": 2}


def test_a_forward_hashes_a_clip_once_and_notices_a_change(monkeypatch):
    hashed = []
    original = tower_outputs._hash
    monkeypatch.setattr(tower_outputs, "_hash", lambda item: hashed.append(1) or original(item))
    clips = torch.zeros(3, 4, 5)
    names = tower_outputs.fingerprints(clips)
    assert tower_outputs.fingerprints(clips) == names and len(hashed) == 3
    clips[1] += 1
    changed = tower_outputs.fingerprints(clips)
    assert changed[0] == changed[2] == names[0] and changed[1] != names[1]
    with torch.inference_mode():  # whose tensors don't count their changes
        frozen = torch.zeros(1, 4, 5)
        before = tower_outputs.fingerprints(frozen)
        frozen += 1
        assert tower_outputs.fingerprints(frozen) != before
