"""Frames from a video file, a gif, a folder of frames, or a list of images.

Video files are decoded by the library that ``VERL_OMNI_VIDEO_DECODER`` in the environment names: by default ``decord``,
which R1-Omni reads with, and which is no longer maintained; ``pyav`` and ``torchcodec`` (where it is installed) give
the same frames of most clips, bit for bit (docs/media.md).
"""

import logging
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageSequence

from verl_omni.media.container import DamagedError, check_whole, open_container
from verl_omni.media.errors import REPLACE, MediaError, existing, media_boundary, named

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
# What decoders say where there is no video, and decord also where it lacks the codec.
NO_VIDEO = ("cannot find video stream", "best video stream is unknown")
VideoSource = str | os.PathLike | Sequence[str | os.PathLike]


def frame_indices(total: int, num_frames: int) -> list[int]:
    """Return the ``num_frames`` indices, one from the middle of each equal segment of ``total`` frames.

    A clip with fewer frames repeats some. Same indices as R1-Omni's uniform sampling.

    >>> frame_indices(5, 8)
    [0, 1, 1, 2, 2, 3, 3, 4]
    """
    segment = (total - 1) / num_frames
    return [round((segment * i + segment * (i + 1)) / 2 + 1e-6) for i in range(num_frames)]


@media_boundary("the video does not decode")
def read_video(source: VideoSource, num_frames: int = 8) -> np.ndarray:
    """Return ``num_frames`` frames of ``source`` as uint8 ``[num_frames, H, W, 3]`` (RGB).

    Args:
        source: a video file, a gif (of which R1-Omni fills up short ones with black), a folder of images (taken in the
            order of their names, as R1-Omni does), or a list of image files (taken in the given order).
        num_frames: frames to sample, see ``frame_indices``.

    Raises:
        MediaError: the file is missing, empty, or does not decode; the folder holds no images; sizes differ.
    """
    if not isinstance(source, str | os.PathLike):
        return _read_images(source, [existing(image) for image in source], num_frames)
    path = existing(source)
    if path.is_dir():
        images = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)
        if images != sorted(images, key=lambda image: [part.zfill(20) for part in re.split(r"(\d+)", image.name)]):
            logger.warning("%s: frames are read in the order of their names, not numbers; pad numbers with zeros", path)
        return _read_images(path, images, num_frames)
    check_whole(path)
    if path.suffix.lower() == ".gif":
        with Image.open(path) as gif:
            frames = ImageSequence.Iterator(gif)
            return np.stack([np.asarray(frames[i].convert("RGB")) for i in frame_indices(gif.n_frames, num_frames)])
    return decode(path, num_frames)


def _read_images(source: VideoSource, images: list[Path], num_frames: int) -> np.ndarray:
    if not images:
        raise MediaError(f"{named(source)}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) there; {REPLACE}")
    chosen = [images[index] for index in frame_indices(len(images), num_frames)]
    frames = [_read_image(existing(image)) for image in chosen]
    for image, frame in zip(chosen, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise MediaError(f"{image}: size {frame.shape[:2]} differs from {chosen[0]}'s {frames[0].shape[:2]}")
    return np.stack(frames)


@media_boundary("the image does not decode")
def _read_image(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def by_decord(path: Path, num_frames: int) -> np.ndarray:
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)  # clips are decoded in parallel, and seeking dominates
    return reader.get_batch(frame_indices(len(reader), num_frames)).asnumpy()


def by_pyav(path: Path, num_frames: int) -> np.ndarray:
    def moment(part: av.Packet | av.VideoFrame) -> int:
        return part.dts if part.pts is None else part.pts  # AVI has no pts

    with open_container(path) as container:
        if not (stream := container.streams.best("video")):
            raise ValueError(NO_VIDEO[0])
        moments = sorted(moment(packet) for packet in container.demux(stream) if packet.size and not packet.is_discard)
    wanted = [moments[index] for index in frame_indices(len(moments), num_frames)]
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


def by_torchcodec(path: Path, num_frames: int) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    return decoder.get_frames_at(frame_indices(len(decoder), num_frames)).data.numpy()


DECODERS = {"decord": by_decord, "pyav": by_pyav, "torchcodec": by_torchcodec}


def chosen() -> str:
    """The decoder's name; ``MediaError`` if the environment names none that is there."""
    name = os.environ.get("VERL_OMNI_VIDEO_DECODER", "decord")
    if name not in DECODERS or (name == "torchcodec" and not find_spec(name)):
        raise MediaError(f"VERL_OMNI_VIDEO_DECODER={name}: there are decord, pyav, and torchcodec once it is installed")
    return name


def decode(path: Path, num_frames: int) -> np.ndarray:
    """Frames, upright, as ``read_video`` gives them; what is wrong is raised in the library's words."""
    try:
        return DECODERS[chosen()](path, num_frames)
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
