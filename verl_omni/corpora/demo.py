"""The demo corpus: real clips (H.264 + AAC) whose label needs sight *and* sound.

A face is bright and smiles, or is dark and frowns; a voice is high and rises, or is low and falls. The four
combinations are the four labels, equally many, so that the best guess from one sense alone is right half of the time.

The cold start's answers say what is seen and heard, but conclude from one of the two, mostly from the face: each clip
is answered three times, twice by what its face suggests and once by what its voice suggests. So a perfect cold start is
right half of the time and sure of nothing, and what GRPO adds, learnt from the reward, is to weigh one against the
other.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from verl_omni.data.files import write_rows
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
SECONDS, FPS, SIDE, SAMPLING_RATE = 2, 8, 64, 16000
FACE_COLOURS = {"bright": ((215, 255), (170, 230), (60, 130)), "dark": ((30, 80), (30, 80), (80, 140))}
MOUTHS = {"bright": (20, 160), "dark": (200, 340)}  # degrees of an arc, clockwise from the right: smile, frown
PITCHES = {"high": ((900, 1200), (1500, 2200)), "low": ((260, 340), (110, 170))}  # Hz at the start and at the end


def build_demo(
    out_dir: str | Path, seed: int = 0, n_train: int = 256, n_test: int = 64, n_sft: int = 96
) -> dict[str, Path]:
    """Write clips and rows; the same seed writes the same bytes.

    Args:
        out_dir: gets ``clips/`` and one rows file per split.
        n_train: clips for GRPO, with labels.
        n_test: held-out clips, for evaluation.
        n_sft: clips for the cold start, each with three answers that name what is there and conclude from one sense.

    Returns:
        The rows files: ``sft``, ``train`` and ``test``, and ``train_sft``, the training clips with bare labels.

    Raises:
        ValueError: a number of clips that four labels can't share evenly.
    """
    sizes = {"sft": n_sft, "train": n_train, "test": n_test}
    for split, size in sizes.items():
        if size <= 0 or size % len(LABEL_OF):
            raise ValueError(
                f"n_{split}={size}: it must be a positive multiple of {len(LABEL_OF)}, one share per label"
            )
    out_dir = Path(out_dir).resolve()
    files = {split: out_dir / f"{split}.parquet" for split in sizes}
    with tqdm(total=sum(sizes.values()), desc="demo clips", unit="clip") as progress:
        for number, (split, size) in enumerate(sizes.items()):
            (out_dir / "clips" / split).mkdir(parents=True, exist_ok=True)
            rows = list(_rows(split, size, np.random.SeedSequence([seed, number]), out_dir, progress))
            write_rows(rows, files[split])
            if split == "train":
                files["train_sft"] = out_dir / "train_sft.parquet"
                write_rows([_labelled(row) for row in rows], files["train_sft"])
    return files


def _rows(split: str, size: int, seeds: np.random.SeedSequence, out_dir: Path, progress: tqdm) -> Iterator[dict]:
    states = list(LABEL_OF)
    for index, clip_seed in enumerate(seeds.spawn(size)):
        rng = np.random.default_rng(clip_seed)
        sight, sound = states[index % len(states)]
        path = out_dir / "clips" / split / f"{index:04d}.mp4"
        write_clip(path, draw_face(rng, sight), make_voice(rng, sound))
        if split == "sft":
            for label in (SUGGESTS[sight], SUGGESTS[sight], SUGGESTS[sound]):
                thought = THOUGHTS[rng.integers(len(THOUGHTS))].format(sight=sight, sound=sound, label=label)
                yield _sft_row(index, path, thought, label)
        else:
            yield _rl_row(split, index, path, LABEL_OF[sight, sound])
        progress.update()


def _sft_row(index: int, path: Path, thought: str, label: str) -> dict:
    answer = {"role": "assistant", "content": f"<think>{thought}</think>\n<answer>{label}</answer>"}
    return {"messages": [_question(), answer], **_about("sft", index, path)}


def _rl_row(split: str, index: int, path: Path, label: str) -> dict:
    reward_model = {"style": "rule", "ground_truth": label}
    return {"prompt": [_question()], "ability": "emotion", "reward_model": reward_model, **_about(split, index, path)}


def _question() -> dict:
    return {"role": "user", "content": f"<video><audio>{instruction()}"}


def _about(split: str, index: int, path: Path) -> dict:
    about = {"index": index, "split": split, "id": f"demo/{split}/{index:04d}"}
    return {"data_source": "demo", "videos": [str(path)], "audios": [str(path)], "extra_info": about}


def _labelled(row: dict) -> dict:
    """The row as an example for fine-tuning on labels alone, without reasoning."""
    label = row["reward_model"]["ground_truth"]
    kept = {key: row[key] for key in ("data_source", "videos", "audios", "extra_info")}
    return {"messages": [*row["prompt"], {"role": "assistant", "content": label}], **kept}


def draw_face(rng: np.random.Generator, sight: str) -> np.ndarray:
    """Return a face that moves before a noisy wall, uint8 ``[T, H, W, 3]``; place, size and colours vary."""
    wall, colour = rng.integers(90, 170, 3), tuple(int(rng.integers(*span)) for span in FACE_COLOURS[sight])
    ink = tuple(255 - value for value in colour)
    radius, centre, drift = rng.uniform(18, 25), SIDE / 2 + rng.uniform(-5, 5, 2), rng.uniform(-3, 3, 2)
    frames = []
    for when in np.linspace(-1, 1, SECONDS * FPS):
        noise = rng.normal(0, 12, (SIDE, SIDE, 3))
        image = Image.fromarray((wall + noise).clip(0, 255).astype(np.uint8))
        _draw_features(ImageDraw.Draw(image), centre + when * drift, radius, colour, ink, MOUTHS[sight])
        frames.append(np.asarray(image))
    return np.stack(frames)


def _draw_features(
    draw: ImageDraw.ImageDraw, centre: np.ndarray, radius: float, colour: tuple, ink: tuple, mouth: tuple[int, int]
) -> None:
    def box(x: float, y: float, half_width: float, half_height: float) -> list[float]:
        left, top = centre + radius * np.array([x - half_width, y - half_height])
        right, bottom = centre + radius * np.array([x + half_width, y + half_height])
        return [left, top, right, bottom]

    draw.ellipse(box(0, 0, 1, 1), fill=colour)
    for side in (-0.4, 0.4):
        draw.ellipse(box(side, -0.3, 0.13, 0.13), fill=ink)
    smiles = mouth[0] < 180
    draw.arc(box(0, 0.15 if smiles else 0.7, 0.55, 0.45), *mouth, fill=ink, width=max(2, round(radius / 6)))


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


def write_clip(path: Path, frames: np.ndarray, wave: np.ndarray) -> None:
    """Write frames uint8 ``[T, H, W, 3]`` and mono ``[samples]`` as mp4 (H.264 + AAC)."""
    with av.open(str(path), "w") as clip:
        # zerolatency: with its look-ahead, x264 does not always write the same bytes for the same frames.
        options = {"crf": "18", "preset": "veryfast", "tune": "zerolatency"}
        video = clip.add_stream("libx264", rate=FPS, options=options)
        video.width, video.height, video.pix_fmt = SIDE, SIDE, "yuv420p"
        video.codec_context.thread_count = 1  # clips this small gain nothing from more
        audio = clip.add_stream("aac", rate=SAMPLING_RATE, layout="mono")
        for frame in frames:
            clip.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        sound = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = SAMPLING_RATE, 0, Fraction(1, SAMPLING_RATE)
        clip.mux(audio.encode(sound))
        for stream in (video, audio):
            clip.mux(stream.encode(None))
