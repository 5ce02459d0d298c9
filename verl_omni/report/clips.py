"""A clip as the page shows it: small frames, the waveform and playable sound, all as data URIs."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
from PIL import Image

from verl_omni.media import MediaError
from verl_omni.media.resize import HUMANOMNI
from verl_omni.media.store import read_frames, read_sound

FRAME_HEIGHT = 96
SAMPLING_RATE = 16_000
SOUND_SECONDS = 30
WAVE_POINTS = 240


@dataclass(frozen=True)
class ClipView:
    """What is seen and heard of a clip."""

    frames: list[str]  # those that the model sees, as JPEG data URIs
    sound: str  # MP3 data URI of the first 30 s; empty without sound
    wave: str  # SVG path of the waveform's envelope in a box of 240 x 40; empty without sound
    seconds: float  # length of the sound
    problems: list[str]  # why a part is missing


def view(videos: Sequence[str | list[str]], audios: list[str], num_frames: int = 8) -> ClipView:
    """Read a row's media for the page; a file that does not decode becomes a line in ``problems``."""
    frames, sound, wave, seconds, problems = [], "", "", 0.0, []
    for path in videos[:1]:
        try:
            frames = [_jpeg(frame) for frame in without_padding(read_frames(path, num_frames, HUMANOMNI))]
        except (MediaError, OSError) as error:
            problems.append(str(error))
    for path in audios[:1]:
        try:
            samples = read_sound(path, SAMPLING_RATE)
        except (MediaError, OSError) as error:
            problems.append(str(error))
            continue
        seconds = len(samples) / SAMPLING_RATE
        samples = samples[: SOUND_SECONDS * SAMPLING_RATE]
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, SAMPLING_RATE, format="MP3")
        sound, wave = _data_uri("audio/mpeg", buffer), envelope(samples)
    return ClipView(frames, sound, wave, seconds, problems)


def without_padding(frames: np.ndarray) -> np.ndarray:
    """Cut off what is of the padding's colour in all of the ``frames [T, S, S, 3]``, at their edges."""
    seen = (frames != HUMANOMNI.colour).any(axis=(0, 3))  # [S, S]
    rows, columns = (np.flatnonzero(seen.any(axis)) for axis in (1, 0))
    return frames[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else frames


def envelope(samples: np.ndarray) -> str:
    """A closed SVG path around the waveform ``[samples]``, in a box of ``WAVE_POINTS`` by 40."""
    parts = np.array_split(samples, min(WAVE_POINTS, max(len(samples), 1)))
    peak = max(float(np.abs(samples).max(initial=0.0)), 1e-6)
    x = np.linspace(0, WAVE_POINTS, len(parts))
    high = [part.max(initial=0.0) / peak for part in parts]
    low = [part.min(initial=0.0) / peak for part in parts]
    points = zip([*x, *x[::-1]], [*high, *low[::-1]], strict=True)
    return "M" + "L".join(f"{x:.1f},{20 - 19 * y:.1f}" for x, y in points) + "Z"


def _jpeg(frame: np.ndarray) -> str:
    image = Image.fromarray(frame)
    image = image.resize((max(1, round(image.width * FRAME_HEIGHT / image.height)), FRAME_HEIGHT))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=78)
    return _data_uri("image/jpeg", buffer)


def _data_uri(mime: str, data: io.BytesIO) -> str:
    return f"data:{mime};base64,{base64.b64encode(data.getvalue()).decode()}"
