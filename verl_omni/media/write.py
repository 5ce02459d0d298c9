"""Clips made on the spot: for the demo corpus, benchmarks and tests."""

from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np


def write_clip(
    path: Path, frames: Iterable[np.ndarray], wave: np.ndarray | None, fps: int, sampling_rate: int, **x264: str
) -> Path:
    """Write a clip (H.264 and AAC, in the container that the suffix names) to ``path``, which is returned.

    Args:
        frames: each uint8 ``[H, W, 3]`` (RGB), of even sides.
        wave: mono float32 ``[samples]`` in -1..1; None for a clip without an audio track.
        fps, sampling_rate: of frames and wave.
        **x264: the encoder's options.
    """
    frames = iter(frames)
    first = next(frames)
    with av.open(str(path), "w") as clip:
        video = clip.add_stream("libx264", rate=fps, options=x264)
        video.height, video.width, video.pix_fmt = *first.shape[:2], "yuv420p"
        video.codec_context.thread_count = 1  # the same bytes on every machine
        audio = None if wave is None else clip.add_stream("aac", rate=sampling_rate, layout="mono")
        for frame in chain([first], frames):
            clip.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        if wave is not None and audio is not None:
            sound = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = sampling_rate, 0, Fraction(1, sampling_rate)
            clip.mux(audio.encode(sound))
        for stream in clip.streams:
            clip.mux(stream.encode(None))
    return path
