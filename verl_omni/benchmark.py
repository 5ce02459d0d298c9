"""What a clip costs, as it is with verl's plain behaviour (``VERL_OMNI_SHARING=0``) and now, side by side.

Every figure comes from the code that training runs: the dataset, verl's agent-loop functions, the processor, the rows
for TransferQueue, and the model's log-probabilities, reference and update.
"""

import asyncio
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import av
import decord
import numpy as np
import psutil
import torch
from omegaconf import OmegaConf
from transformers import AutoProcessor, WhisperFeatureExtractor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import verl_omni.models  # noqa: F401
from verl_omni import sharing
from verl_omni.media import frame_indices, read_audio, read_video
from verl_omni.models.humanomni.processing import HumanOmniProcessor
from verl_omni.prompts import instruction

ROLLOUTS = 8
SECONDS, FPS, SAMPLING_RATE = 4, 25, 44100  # of a generated clip
SIZES = {"240p": (426, 240), "720p": (1280, 720)}
PASSES = 3  # log-probabilities, reference, update


@contextmanager
def plain_or_shared(plain: bool) -> Iterator[None]:
    """Sharing switched off or on, from empty caches."""
    for cache in (sharing.DECODED, sharing.PROCESSED):
        cache.clear()
    with patch.dict(os.environ, VERL_OMNI_SHARING="0" if plain else "1"):
        yield


def median_ms(function: Callable[[], object], repeats: int = 7) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def write_clip(path: Path, width: int, height: int) -> Path:
    """Write a moving pattern and a tone as mp4: H.264 at x264's defaults, AAC."""
    y, x = np.mgrid[:height, :width]
    with av.open(str(path), "w") as clip:
        video, audio = clip.add_stream("libx264", rate=FPS), clip.add_stream("aac", rate=SAMPLING_RATE, layout="mono")
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        for i in range(SECONDS * FPS):
            image = np.stack([x + 3 * i, 2 * y + i, x * y // 50 + i], axis=-1).astype(np.uint8)
            clip.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        tone = 0.3 * np.sin(0.05 * np.arange(SECONDS * SAMPLING_RATE, dtype=np.float32))
        sound = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = SAMPLING_RATE, 0, Fraction(1, SAMPLING_RATE)
        clip.mux(audio.encode(sound))
        for stream in (video, audio):
            clip.mux(stream.encode(None))
    return path


# ---------------------------------------------------------------- one clip


def original_frames(frames: np.ndarray, image_processor: SiglipImageProcessorPil) -> torch.Tensor:
    """R1-Omni's way: pad each frame to a square, then the slow SigLIP processor."""
    height, width = frames.shape[1:3]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    squares = np.full((len(frames), side, side, 3), 127, np.uint8)
    squares[:, top : top + height, left : left + width] = frames
    inputs = image_processor(list(squares), input_data_format="channels_last", return_tensors="pt")
    return inputs["pixel_values"]


def full_size(processor: HumanOmniProcessor) -> HumanOmniProcessor:
    """The processor with SigLIP's 224 px and the 128 mel bins of Whisper-large-v3."""
    image_processor = SiglipImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return HumanOmniProcessor(
        image_processor, WhisperFeatureExtractor(feature_size=128), processor.tokenizer, processor.bert_tokenizer
    )


def measure_clip(clip: Path, processor: HumanOmniProcessor) -> dict[str, dict[str, float]]:
    """Milliseconds for one clip on one core, the original's way and now; the numbers that come out are the same."""
    frames, wave = read_video(clip), read_audio(clip)
    image_processor, extractor = processor.image_processor, processor.feature_extractor

    def original_decode() -> None:
        reader = decord.VideoReader(str(clip), num_threads=1)
        reader.get_batch(frame_indices(len(reader), 8)).asnumpy()
        decord.AudioReader(str(clip), sample_rate=16000, mono=True)[:].asnumpy()

    def original_mel() -> torch.Tensor:
        padded = np.zeros(extractor.n_samples, np.float32)
        padded[: len(wave)] = wave[: extractor.n_samples]
        return torch.from_numpy(extractor._np_extract_fbank_features(padded[None], "cpu"))

    pixels = processor.process_frames(frames)
    assert torch.equal(pixels, original_frames(frames, image_processor))
    torch.testing.assert_close(processor.process_wave(wave, 16000), original_mel().float(), atol=1e-4, rtol=0)
    return {
        "decode, ms": {
            "plain": median_ms(original_decode),
            "now": median_ms(lambda: (read_video(clip), read_audio(clip))),
        },
        "frames to pixels, ms": {
            "plain": median_ms(lambda: original_frames(frames, image_processor)),
            "now": median_ms(lambda: processor.process_frames(frames)),
        },
        "sound to mel, ms": {
            "plain": median_ms(original_mel),
            "now": median_ms(lambda: processor.process_wave(wave, 16000)),
        },
    }


# ---------------------------------------------------------------- one prompt


async def roll_out(clip: Path, processor: HumanOmniProcessor) -> list[dict[str, torch.Tensor]]:
    """What verl's agent-loop worker does with the media of a prompt's rollouts, at once; no text is generated.

    Returns:
        The rollouts' ``multi_modal_inputs``.
    """
    from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, AgentLoopWorker
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    from verl_omni.data.dataset import OmniRLHFDataset

    builder = create_continuous_token_builder(processor.tokenizer, processor=processor)
    worker = SimpleNamespace(processor=processor, tokenizer=processor.tokenizer)
    worker._get_mm_processor_kwargs = lambda audios: {"sampling_rate": 16000}
    media = [{"type": "video", "video": str(clip)}, {"type": "audio", "audio": str(clip)}]
    messages = [{"role": "user", "content": [*media, {"type": "text", "text": instruction()}]}]
    config = OmegaConf.create({"num_frames": 8})

    async def one() -> dict[str, torch.Tensor]:
        _, videos, audios = await OmniRLHFDataset.process_multi_modal_info(messages, 16, config)
        ids = await asyncio.get_running_loop().run_in_executor(
            None, lambda: builder.build_initial_tokens(messages, videos=videos, audios=audios)
        )
        output = AgentLoopOutput(
            prompt_ids=ids, response_ids=[], response_mask=[], metrics={},
            multi_modal_data={"videos": videos, "audios": audios},
        )  # fmt: skip
        for _ in ("for the reward", "for the row"):
            inputs = AgentLoopWorker._compute_multi_modal_inputs(worker, output, torch.tensor(ids))
        return inputs

    return await asyncio.gather(*(one() for _ in range(ROLLOUTS)))


@contextmanager
def counted(counts: Counter, owner: object, name: str, label: str) -> Iterator[None]:
    function = getattr(owner, name)

    def counting(*args, **kwargs):
        counts[label] += 1
        return function(*args, **kwargs)

    counting.__name__ = name
    with patch.object(owner, name, counting):
        yield


def measure_prompt(clip: Path, processor: HumanOmniProcessor) -> dict[str, dict[str, float]]:
    """Decodes, processor runs, seconds and bytes of a prompt with 8 rollouts, in the agent-loop worker."""
    results: dict[str, dict[str, float]] = {}
    for which in ("plain", "now"):
        counts: Counter = Counter()
        with (
            plain_or_shared(which == "plain"),
            counted(counts, sharing, "read_video", "decodes a prompt"),
            counted(counts, HumanOmniProcessor, "_process_frames", "runs over a prompt's media"),
        ):
            start = time.perf_counter()
            rollouts = asyncio.run(roll_out(clip, processor))
            seconds = time.perf_counter() - start
            moved = asyncio.run(bytes_moved(rollouts))
        figures = {
            **counts,
            "agent loop's media, s a prompt": seconds,
            "MB through TransferQueue a rollout": moved / ROLLOUTS / 1e6,
        }
        for name, value in figures.items():
            results.setdefault(name, {})[which] = value
    return results


async def bytes_moved(rollouts: list[dict[str, torch.Tensor]]) -> int:
    """Encoded bytes of media that go to TransferQueue and from it to one trainer process in a step's three passes."""
    from transfer_queue.utils.serial_utils import MsgpackEncoder
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    from verl_omni.shared_clips import FETCHED, store_clips_once

    FETCHED.clear()
    rows: dict[tuple[str, str], object] = {}
    moved = 0

    def count(inputs: object) -> object:
        nonlocal moved
        moved += sum(memoryview(part).nbytes for part in MsgpackEncoder().encode(inputs))
        return inputs

    async def put(keys, partition_id, fields, **_) -> None:
        for key, inputs in zip(keys, fields.get("multi_modal_inputs").tolist(), strict=True):
            rows[partition_id, key] = count(inputs)

    async def get(keys, partition_id):
        return list_of_dict_to_tensordict([{"multi_modal_inputs": count(rows[partition_id, key])} for key in keys])

    queue = SimpleNamespace(async_kv_batch_put=put, async_kv_batch_get=get, kv_clear=None)
    utils = SimpleNamespace(tq=queue, _async_meta_to_realdata=lambda keys: get(keys, "train"))
    store_clips_once(utils)
    keys = [f"uid_{number}_0" for number in range(len(rollouts))]
    for key, inputs in zip(keys, rollouts, strict=True):
        row = list_of_dict_to_tensordict([{"multi_modal_inputs": inputs}])
        await utils.tq.async_kv_batch_put(keys=[key], partition_id="train", fields=row)
    for _ in range(PASSES):
        await utils._async_meta_to_realdata(keys)
    return moved


def measure_memory(clip: Path, decodes: int = 1000) -> dict[str, dict[str, float]]:
    """Growth of this process' resident memory over ``decodes`` of changed files, after the cache has filled."""
    process, results = psutil.Process(), {}
    for which in ("plain", "now"):
        with plain_or_shared(which == "plain"):
            for number in range(decodes + 300):
                if number == 300:
                    before = process.memory_info().rss
                os.utime(clip, ns=(number, number))  # for the cache another file
                sharing.read_video_once(clip, 8)
            results[which] = (process.memory_info().rss - before) / 2**20
    return {f"memory over {decodes} decodes, MiB": results}


# ---------------------------------------------------------------- one step


def build_model(shrink: int) -> torch.nn.Module:
    """HumanOmni-0.5B, random weights; depths and vocabulary divided by ``shrink``, widths and lengths in full."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "HumanOmni_qwen2",
        vision_config={"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "image_size": 224,
                       "patch_size": 16, "num_hidden_layers": max(2, 12 // shrink) + (shrink > 1)},
        audio_config={"d_model": 1280, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "num_mel_bins": 128,
                      "encoder_layers": 32 // shrink, "decoder_layers": 1},
        bert_config={"num_hidden_layers": max(1, 12 // shrink)},
        hidden_size=896, intermediate_size=4864, num_attention_heads=14, num_key_value_heads=2,
        num_hidden_layers=24 // shrink, vocab_size=151936 // shrink, tie_word_embeddings=True,
        video_token_id=1, audio_token_id=2, attn_implementation="sdpa",
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def step(actor: torch.nn.Module, reference: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """Log-probabilities, reference and update of one prompt's rollouts in one micro-batch."""
    with torch.no_grad():
        actor(**batch)
        reference(**batch)
    actor.zero_grad()
    actor(**batch).logits.float().logsumexp(-1).mean().backward()


def measure_step() -> tuple[dict[str, dict[str, float]], str]:
    """Seconds and tower passes for one prompt of 8 rollouts; on a GPU at full depth in bfloat16."""
    from verl_omni.models.humanomni import shared_towers
    from verl_omni.models.humanomni.towers import HumanOmniTowers

    gpu = torch.cuda.is_available()
    device, dtype, shrink, repeats = ("cuda", torch.bfloat16, 1, 5) if gpu else ("cpu", torch.float32, 8, 1)
    torch.manual_seed(0)
    actor, reference = (build_model(shrink).to(device, dtype).train() for _ in range(2))
    reference.load_state_dict(actor.state_dict())
    media = {
        "pixel_values": torch.randn(1, 8, 3, 224, 224), "input_features": torch.randn(1, 128, 3000),
        "bert_input_ids": torch.randint(5, 1000, (1, 512)), "bert_attention_mask": torch.arange(512)[None] < 40,
    }  # fmt: skip
    batch = {name: tensor.repeat(ROLLOUTS, *[1] * (tensor.dim() - 1)) for name, tensor in media.items()}
    prompt = torch.cat([torch.full((392,), 1), torch.full((500,), 2)])
    batch["input_ids"] = torch.cat([prompt.expand(ROLLOUTS, -1), torch.randint(5, 1000, (ROLLOUTS, 128))], dim=1)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    step(actor, reference, {name: tensor[:1] for name, tensor in batch.items()})  # warm up

    results: dict[str, dict[str, float]] = {}
    for which in ("plain", "now"):
        times, clips = [], Counter()
        encode = HumanOmniTowers.encode_audio

        def encode_and_count(self, inputs, encode=encode, clips=clips):
            clips["passes"] += len(inputs)
            return encode(self, inputs)

        with plain_or_shared(which == "plain"), patch.object(HumanOmniTowers, "encode_audio", encode_and_count):
            for _ in range(repeats):
                shared_towers.TOWER_OUTPUTS.clear()
                start = time.perf_counter()
                step(actor, reference, batch)
                if gpu:
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
        for name, value in (
            ("tower passes a clip and step", clips["passes"] / repeats),
            ("log-prob + reference + update, s", statistics.median(times)),
        ):
            results.setdefault(name, {})[which] = value
    what = "full depth, bfloat16" if gpu else f"widths in full, depths and vocabulary 1/{shrink}, float32"
    return results, f"{torch.cuda.get_device_name() if gpu else f'{torch.get_num_threads()} CPU threads'}; {what}"


def load_processor(directory: Path) -> HumanOmniProcessor:
    from verl_omni.models.humanomni.tiny import build_tiny

    return full_size(AutoProcessor.from_pretrained(build_tiny(directory)))
