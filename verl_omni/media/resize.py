"""Frames as the model wants them: of one size, padded to squares or squashed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class FrameFormat:
    """What becomes of a clip's frames. Frames that have the format already pass unchanged, where ``size`` is a square.

    With ``multiple`` frames keep their ratio, about, and ``size`` says how many pixels they have at most.
    """

    size: tuple[int, int] = (224, 224)  # height and width in pixels; HumanOmni's by default
    resample: int = 3  # Pillow's filter; 3 is bicubic
    colour: tuple[int, int, int] | None = (127, 127, 127)  # to pad frames to squares with; None squashes them
    multiple: int | None = None  # what each side is to be a multiple of (Qwen's patches)

    def apply(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Frames uint8 ``[H, W, 3]`` each -> uint8 ``[T, *size, 3]``."""
        size = fitting(frames[0].shape[:2], self.size, self.multiple) if self.multiple else self.size
        return np.stack([resize(frame, size, self.resample, self.colour) for frame in frames])


HUMANOMNI = FrameFormat()


def fitting(shape: tuple[int, int], size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Sides of as many pixels as ``size`` or somewhat less, in the ratio of ``shape``, both a multiple.

    >>> fitting((720, 1280), (364, 364), 28)
    (252, 476)
    """
    scale = math.sqrt(size[0] * size[1] / (shape[0] * shape[1]))
    height, width = (max(multiple, int(side * scale / multiple + 1e-6) * multiple) for side in shape)
    return height, width


def resize(image: np.ndarray, size: tuple[int, int], resample: int, colour: Sequence[int] | None = None) -> np.ndarray:
    """uint8 ``[H, W, 3]`` -> ``[*size, 3]`` by Pillow; with ``colour`` the image is first centred on a square of it."""
    frame = Image.fromarray(image)
    if colour:
        side = max(frame.size)
        frame = centre(frame, side, frame.height, colour)
        if size[0] == size[1]:
            # From square to square Pillow resizes columns, then rows, and rounds in between: rows of one colour may as
            # well be added there. Other shapes it may resize rows first, which gives other pixels.
            frame = frame.resize((size[1], frame.height), resample)
        frame = centre(frame, frame.width, side, colour)
    return np.asarray(frame.resize((size[1], size[0]), resample))


def centre(image: Image.Image, width: int, height: int, colour: Sequence[int]) -> Image.Image:
    """``image`` in the middle of ``width`` x ``height`` pixels."""
    if image.size == (width, height):
        return image
    canvas = Image.new("RGB", (width, height), tuple(colour))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas
