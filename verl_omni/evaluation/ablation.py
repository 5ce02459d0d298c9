"""Which sense does the model use? The same rows with one of them taken away.

A blanked video keeps its shape and shows one colour, the image processor's mean, which the model sees as zeros: the
same for every clip, so that nothing of the clip (not even its brightness) is left. Muted audio is silence of the same
length. Results carry the variant's name; the unchanged rows are the variant ``normal``.
"""

import numpy as np

NORMAL, VIDEO_BLANKED, AUDIO_MUTED = VARIANTS = ("normal", "video_blanked", "audio_muted")


def blank_video(frames: np.ndarray, image_mean: list[float]) -> np.ndarray:
    """Frames ``[T, H, W, 3]`` uint8 of the same shape in the mean colour (times 255, truncated, as in padding)."""
    colour = np.array([int(channel * 255) for channel in image_mean], dtype=np.uint8)
    return np.broadcast_to(colour, frames.shape).copy()


def mute_audio(wave: np.ndarray) -> np.ndarray:
    """Silence ``[samples]`` of the same length."""
    return np.zeros_like(wave)


def applies(variant: str, videos: list, audios: list) -> bool:
    """Whether a row has the sense that the variant takes away."""
    return {NORMAL: True, VIDEO_BLANKED: bool(videos), AUDIO_MUTED: bool(audios)}[variant]
