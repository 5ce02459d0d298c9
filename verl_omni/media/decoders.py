"""Frames of a video file, by the library that ``VERL_OMNI_VIDEO_DECODER`` in the environment names.

``decord``, the default, is what R1-Omni reads with, and is no longer maintained; ``pyav`` and ``torchcodec`` (where it
is installed) give the same frames of most clips, bit for bit (docs/media.md).
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np

from verl_omni.media.container import DamagedError, open_container
from verl_omni.media.errors import MediaError

# What decoders say where there is no video, and decord also where it lacks the codec.
NO_VIDEO = ("cannot find video stream", "best video stream is unknown")
Pick = Callable[[int], list[int]]  # number of frames -> indices of those wanted, ascending


def by_decord(path: Path, pick: Pick) -> np.ndarray:
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)  # clips are decoded in parallel, and seeking dominates
    return reader.get_batch(pick(len(reader))).asnumpy()


def by_pyav(path: Path, pick: Pick) -> np.ndarray:
    def moment(part: av.Packet | av.VideoFrame) -> int:
        return part.dts if part.pts is None else part.pts  # AVI has no pts

    with open_container(path) as container:
        if not (stream := container.streams.best("video")):
            raise ValueError(NO_VIDEO[0])
        moments = sorted(moment(packet) for packet in container.demux(stream) if packet.size and not packet.is_discard)
    wanted = [moments[index] for index in pick(len(moments))]
    frames: list[np.ndarray] = []
    with open_container(path) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):  # the next one stands for a frame that refers to none
            while moment(frame) >= wanted[len(frames)]:
                frames.append(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
                if len(frames) == len(wanted):
                    return np.stack(frames)
    raise DamagedError("the last frames do not decode")


def by_torchcodec(path: Path, pick: Pick) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    return decoder.get_frames_at(pick(len(decoder))).data.numpy()


DECODERS = {"decord": by_decord, "pyav": by_pyav, "torchcodec": by_torchcodec}


def chosen() -> str:
    """The decoder's name; ``MediaError`` if the environment names none that is there."""
    name = os.environ.get("VERL_OMNI_VIDEO_DECODER", "decord")
    if name not in DECODERS or (name == "torchcodec" and not find_spec(name)):
        raise MediaError(f"VERL_OMNI_VIDEO_DECODER={name}: there are decord, pyav, and torchcodec once it is installed")
    return name


def decode(path: Path, pick: Pick) -> np.ndarray:
    """Frames ``pick`` of ``path``, upright, uint8 ``[T, H, W, 3]``; what is wrong is raised in the library's words."""
    try:
        return DECODERS[chosen()](path, pick)
    except Exception as error:
        if not any(words in str(error) for words in NO_VIDEO):
            raise
        with open_container(path) as container:
            stream = container.streams.best("video")
            codec = stream and stream.codec_context and stream.codec_context.codec.canonical_name
        anew = "encode it anew (ffmpeg -i IN -c:v libx264 OUT.mp4), or set VERL_OMNI_VIDEO_DECODER=pyav"
        none = "no video stream; give its rows no video, or another file"
        problem = f"{chosen()} has no decoder for its codec, {codec}; {anew}" if codec else none
        raise MediaError(f"{path}: {problem}") from error
