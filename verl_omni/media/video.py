"""Frames from a video file, a gif, a folder of frames, or a list of images."""

import logging
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from verl_omni.media.container import check_whole
from verl_omni.media.decoders import decode
from verl_omni.media.errors import REPLACE, MediaError, existing, media_boundary

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}

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
        return _read_images([existing(image) for image in source], num_frames, name=f"{len(source)} images")
    path = existing(source)
    if path.is_dir():
        return _read_images(_images_of(path), num_frames, name=str(path))
    check_whole(path)
    if path.suffix.lower() == ".gif":
        return _read_gif(path, num_frames)
    return decode(path, partial(frame_indices, num_frames=num_frames))


def _images_of(folder: Path) -> list[Path]:
    images = sorted(entry for entry in folder.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)
    if images != sorted(images, key=lambda image: [part.zfill(20) for part in re.split(r"(\d+)", image.name)]):
        logger.warning("%s: frames are read in the order of their names, not numbers; pad numbers with zeros", folder)
    return images


def _read_images(images: list[Path], num_frames: int, name: str) -> np.ndarray:
    if not images:
        raise MediaError(f"{name}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) there; {REPLACE}")
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


def _read_gif(path: Path, num_frames: int) -> np.ndarray:
    frames = []
    with Image.open(path) as gif:
        for index in frame_indices(gif.n_frames, num_frames):
            gif.seek(index)
            frames.append(np.asarray(gif.convert("RGB")))
    return np.stack(frames)
