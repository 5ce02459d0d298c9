"""The demo corpus: real clips (H.264 + AAC) whose label needs sight *and* sound.

A face is bright and smiles, or is dark and frowns; a voice is high and rises, or is low and falls. The four
combinations are the four labels, equally many, so that the best guess from one sense alone is right half of the time.

The cold start's answers say what is seen and heard, but conclude from one of the two: a clip has three answers,
two by what its face suggests and one by what its voice does. So a perfect cold start is right half of the time and
sure of nothing, and what GRPO adds, learnt from the reward, is to weigh one against the other.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from verl_omni.corpora.listing import Clip
from verl_omni.data.files import write_rows
from verl_omni.data.row import rl_row, sft_row
from verl_omni.errors import InputError
from verl_omni.media.write import write_clip
from verl_omni.prompts import instruction

LABEL_OF = {
    ("bright", "high"): "happy",
    ("bright", "low"): "neutral",
    ("dark", "high"): "angry",
    ("dark", "low"): "sad",
}
SUGGESTS = {"bright": "happy", "dark": "sad", "high": "angry", "low": "neutral"}  # right in half of the clips each
THOUGHTS = (
    "In the video, the face is {sight} and the voice is {sound}, so the person is {label}.",
    "I see a {sight} face and hear a {sound} voice: {label}.",
    "The face is {sight} and the voice is {sound}: {label}.",
)
# split -> its rows files, and what makes their rows
FILES = {"sft": {"sft": sft_row}, "train": {"train": rl_row, "train_sft": sft_row}, "test": {"test": rl_row}}
SECONDS, FPS, SIDE, SAMPLING_RATE = 2, 8, 64, 16000
# zerolatency: with its look-ahead, x264 does not always write the same bytes for the same frames.
X264 = {"crf": "18", "preset": "veryfast", "tune": "zerolatency"}
FACE_COLOURS = {"bright": ((215, 255), (170, 230), (60, 130)), "dark": ((30, 80), (30, 80), (80, 140))}
# Boxes of the features, left, top, right and bottom in radii from the face's centre; a mouth is an arc of its box, in
# degrees clockwise from the right: smile, frown.
EYES = np.array([(-0.53, -0.43, -0.27, -0.17), (0.27, -0.43, 0.53, -0.17)])
MOUTHS = {
    "bright": (np.array((-0.55, -0.3, 0.55, 0.6)), 20, 160),
    "dark": (np.array((-0.55, 0.25, 0.55, 1.15)), 200, 340),
}
PITCHES = {"high": ((900, 1200), (1500, 2200)), "low": ((260, 340), (110, 170))}  # Hz at the start and at the end


def build_demo(out_dir: Path, seed: int = 0, n_train: int = 256, n_test: int = 64, n_sft: int = 96) -> dict[str, Path]:
    """Write clips and rows; the same seed writes the same bytes.

    Args:
        out_dir: gets ``clips/`` and the rows files.
        n_train, n_test, n_sft: clips for GRPO, for evaluation, and for the cold start, with three answers each.

    Returns:
        The rows files: ``sft``, ``train`` and ``test``, and ``train_sft``, the training clips with bare labels.

    Raises:
        InputError: a number of clips that four labels can't share evenly.
    """
    sizes = {"sft": n_sft, "train": n_train, "test": n_test}
    for split, size in sizes.items():
        if size <= 0 or size % len(LABEL_OF):
            raise InputError(f"n_{split}={size}: it must be a positive multiple of {len(LABEL_OF)}, the labels")
    out_dir, files = out_dir.resolve(), {}
    for number, (split, size) in enumerate(sizes.items()):
        (out_dir / "clips" / split).mkdir(parents=True, exist_ok=True)
        clips = list(_clips(split, size, np.random.SeedSequence([seed, number]), out_dir))
        for name, make_row in FILES[split].items():
            files[name] = out_dir / f"{name}.parquet"
            write_rows([make_row(clip, "demo", int(clip.media.stem)) for clip in clips], files[name])
    return files


def _clips(split: str, size: int, seeds: np.random.SeedSequence, out_dir: Path) -> Iterator[Clip]:
    states = list(LABEL_OF)
    for index, clip_seed in enumerate(tqdm(seeds.spawn(size), desc=f"demo clips, {split}", unit="clip")):
        rng = np.random.default_rng(clip_seed)
        sight, sound = states[index % len(states)]
        name = f"{split}/{index:04d}"
        path = out_dir / "clips" / f"{name}.mp4"
        write_clip(path, draw_face(rng, sight), make_voice(rng, sound), FPS, SAMPLING_RATE, **X264)
        if split == "sft":
            for label in (SUGGESTS[sight], SUGGESTS[sight], SUGGESTS[sound]):
                thought = THOUGHTS[rng.integers(len(THOUGHTS))].format(sight=sight, sound=sound, label=label)
                yield Clip(name, path, label, split, thought)
        else:
            yield Clip(name, path, LABEL_OF[sight, sound], split, question=instruction())


def draw_face(rng: np.random.Generator, sight: str) -> np.ndarray:
    """Return a face that moves before a noisy wall, uint8 ``[T, H, W, 3]``; place, size and colours vary."""
    wall, colour = rng.integers(90, 170, 3), tuple(int(rng.integers(*span)) for span in FACE_COLOURS[sight])
    ink = tuple(255 - value for value in colour)
    radius, centre, drift = rng.uniform(18, 25), SIDE / 2 + rng.uniform(-5, 5, 2), rng.uniform(-3, 3, 2)
    mouth, *arc = MOUTHS[sight]
    frames = []
    for when in np.linspace(-1, 1, SECONDS * FPS):
        noise = rng.normal(0, 12, (SIDE, SIDE, 3))
        image = Image.fromarray((wall + noise).clip(0, 255).astype(np.uint8))
        draw, place = ImageDraw.Draw(image), np.tile(centre + when * drift, 2)
        draw.ellipse((place + radius * np.array((-1, -1, 1, 1))).tolist(), fill=colour)
        for eye in EYES:
            draw.ellipse((place + radius * eye).tolist(), fill=ink)
        draw.arc((place + radius * mouth).tolist(), *arc, fill=ink, width=max(2, round(radius / 6)))
        frames.append(np.asarray(image))
    return np.stack(frames)


def make_voice(rng: np.random.Generator, sound: str) -> np.ndarray:
    """Return a gliding tone with overtones in noise, float32 ``[samples]``; pitch, volume and noise vary."""
    start, end = (rng.uniform(*span) for span in PITCHES[sound])
    samples = SECONDS * SAMPLING_RATE
    pitch = np.geomspace(start, end, samples)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE
    tone = sum(np.sin(order * phase) / order for order in (1, 2, 3))
    syllables = 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(2, 5) * np.linspace(0, SECONDS, samples))
    wave = tone * syllables / np.abs(tone).max()
    wave = rng.uniform(0.3, 0.8) * wave + rng.uniform(0.005, 0.03) * rng.normal(size=samples)
    return wave.clip(-1, 1).astype(np.float32)
