"""Time to turn one clip into model inputs on one core."""

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import decord
import numpy as np
import torch
from transformers import AutoProcessor, WhisperFeatureExtractor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import verl_omni.models  # noqa: F401
from verl_omni.data.check import Row, check_media
from verl_omni.media import read_audio, read_video, store
from verl_omni.media.child import Children
from verl_omni.media.resize import HUMANOMNI
from verl_omni.media.store import read_frames, read_sound
from verl_omni.media.video import frame_indices
from verl_omni.media.write import write_clip
from verl_omni.models.humanomni.processing import HumanOmniProcessor

from . import Figures, counted

SECONDS, FPS, SAMPLING_RATE = 4, 25, 44100  # of a generated clip
SIZES = {"240p": (426, 240), "720p": (1280, 720)}


def fastest_ms(plain: Callable[[], object], now: Callable[[], object], repeats: int = 11) -> dict[str, float]:
    """The least CPU time of both, run in turns: what one core takes, whatever else the machine does."""
    functions = {"plain": plain, "now": now}
    times: dict[str, list[float]] = {which: [] for which in functions}
    for _ in range(repeats + 1):
        for which, function in functions.items():
            start = time.process_time()
            function()
            times[which].append(time.process_time() - start)
    return {which: min(seconds[1:]) * 1000 for which, seconds in times.items()}  # the first warms up


def make_clip(path: Path, width: int, height: int, seconds: int = SECONDS) -> Path:
    """Write a moving pattern and a tone as mp4: H.264 at x264's defaults, AAC."""
    y, x = np.mgrid[:height, :width]
    frames = (np.stack([x + 3 * i, 2 * y + i, x * y // 50 + i], axis=-1).astype(np.uint8) for i in range(seconds * FPS))
    tone = 0.3 * np.sin(0.05 * np.arange(seconds * SAMPLING_RATE, dtype=np.float32))
    return write_clip(path, frames, tone, FPS, SAMPLING_RATE)


def original_frames(frames: np.ndarray, image_processor: SiglipImageProcessorPil) -> torch.Tensor:
    """R1-Omni's way: pad each frame to a square, then the slow SigLIP processor."""
    height, width = frames.shape[1:3]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    squares = np.full((len(frames), side, side, 3), 127, np.uint8)
    squares[:, top : top + height, left : left + width] = frames
    inputs = image_processor(list(squares), input_data_format="channels_last", return_tensors="pt")
    return inputs["pixel_values"]


def load_processor(model: Path) -> HumanOmniProcessor:
    """The processor of ``model`` with SigLIP's 224 px and the 128 mel bins of Whisper-large-v3."""
    processor = AutoProcessor.from_pretrained(model)
    image_processor = SiglipImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return HumanOmniProcessor(
        image_processor, WhisperFeatureExtractor(feature_size=128), processor.tokenizer, processor.bert_tokenizer
    )


def measure_clip(clip: Path, processor: HumanOmniProcessor) -> Figures:
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
        "decode, ms": fastest_ms(original_decode, lambda: (read_video(clip), read_audio(clip))),
        "frames to pixels, ms": fastest_ms(
            lambda: original_frames(frames, image_processor), lambda: processor.process_frames(frames)
        ),
        "sound to mel, ms": fastest_ms(original_mel, lambda: processor.process_wave(wave, 16000)),
    }


def measure_store(clip: Path, size: str, folder: Path, processor: HumanOmniProcessor, original: float) -> Figures:
    """Milliseconds from a clip to model inputs, from the media cache.

    Args:
        original: what they are the original's way; beside it, what this package's own decoding takes.
    """

    def read() -> tuple[np.ndarray, np.ndarray]:
        return read_frames(clip, 8, HUMANOMNI), read_sound(clip)

    def inputs() -> tuple[torch.Tensor, torch.Tensor]:
        frames, wave = read()
        return processor.process_frames(frames), processor.process_wave(wave, 16000)

    def kept(function: Callable[[], object]) -> Callable[[], object]:
        return patch.dict(os.environ, VERL_OMNI_MEDIA_CACHE=str(folder))(lambda: function())

    def first_time() -> None:
        store._digests.clear()  # as a new process, which reads the clip's bytes once to know its content
        inputs()

    with patch.dict(os.environ, VERL_OMNI_MEDIA_CACHE="0"):
        assert all(map(torch.equal, inputs(), kept(inputs)()))
        both = fastest_ms(inputs, kept(inputs))
        return {
            f"clip to model inputs from the media cache, {size}, ms": {"plain": original, "now": both["now"]},
            f"the same, decoded as now, {size}, ms": both,
            f"of which reading, {size}, ms": fastest_ms(read, kept(read)),
            f"the same the first time in a process, {size}, ms": fastest_ms(inputs, kept(first_time)),
        }


def measure_second_start(clips: list[Path], folder: Path) -> Figures:
    """Media files that a trainer's second start on a corpus decodes, without and with the media cache."""
    media = {"videos": [str(clip) for clip in clips], "audios": [str(clip) for clip in clips]}
    results: dict[str, float] = {}
    for which, cache in (("plain", "0"), ("now", str(folder))):
        with patch.dict(os.environ, VERL_OMNI_MEDIA_CACHE=cache):
            check_media([Row(media, "rows", 0)])
            with counted(counts := Counter(), Children, "call", which):
                check_media([Row(media, "rows", 0)])
        results[which] = counts[which]
    return {"media files that a second start decodes": results}
