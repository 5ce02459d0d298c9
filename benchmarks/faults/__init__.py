"""Damaged clips, and whether each is named, noticed by nobody, or kills its reader: ``python -m benchmarks.faults``.

Each of ten containers is damaged in twelve ways, several times over. Whatever ``check`` would say of a file is computed
in a child process as ``check`` does, and compared with the undamaged clip.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from verl_omni.media import MediaError, read_audio, read_video
from verl_omni.media.check import check_audio, check_video
from verl_omni.media.child import Children

SECONDS, FPS, WIDTH, HEIGHT, RATE = 2, 25, 160, 120, 48000

# container -> (file name, video codec, audio codec, options of the muxer)
CONTAINERS: dict[str, tuple[str, str | None, str | None, dict[str, str]]] = {
    "mp4": ("clip.mp4", "libx264", "aac", {}),
    "mp4, index first": ("first.mp4", "libx264", "aac", {"movflags": "faststart"}),
    "mp4, fragmented": ("fragmented.mp4", "libx264", "aac", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "avi": ("clip.avi", "mpeg4", "mp3", {}),
    "mkv": ("clip.mkv", "libx264", "aac", {}),
    "webm": ("clip.webm", "libvpx", "libopus", {}),
    "ts": ("clip.ts", "libx264", "aac", {}),
    "gif": ("clip.gif", "gif", None, {}),
    "wav": ("clip.wav", None, "pcm_s16le", {}),
    "mp3": ("clip.mp3", None, "mp3", {}),
    "flac": ("clip.flac", None, "flac", {}),
}


def write_clip(folder: Path, container: str, seed: int = 0) -> Path:
    """Write moving shapes with noise, and a tone with noise, in a container."""
    name, video_codec, audio_codec, options = CONTAINERS[container]
    generator = np.random.default_rng(seed)
    path = folder / name
    if container == "gif":
        images = [Image.fromarray(frame) for frame in pictures(generator)]
        images[0].save(path, save_all=True, append_images=images[1:], duration=1000 // FPS)
        return path
    with av.open(str(path), "w", options=options) as clip:
        video = clip.add_stream(video_codec, rate=FPS, options={"g": "12"}) if video_codec else None
        audio = clip.add_stream(audio_codec, rate=RATE, layout="mono") if audio_codec else None
        if video:
            video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for picture in pictures(generator):
                clip.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        if audio:
            time = np.arange(SECONDS * RATE) / RATE
            tone = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.05 * generator.standard_normal(len(time))
            sound = av.AudioFrame.from_ndarray((tone[None] * 32767).astype(np.int16), format="s16", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = RATE, 0, Fraction(1, RATE)
            clip.mux(audio.encode(sound))
        for stream in filter(None, (video, audio)):
            clip.mux(stream.encode(None))
    return path


def pictures(generator: np.random.Generator) -> Iterator[np.ndarray]:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for i in range(SECONDS * FPS):
        picture = np.stack([x + 3 * i, 2 * y + i, x * y // 50 + i], axis=-1) % 256
        yield np.clip(picture + generator.integers(-8, 8, picture.shape), 0, 255).astype(np.uint8)


def flip(data: bytes, generator: np.random.Generator, start: float, stop: float, bits: int) -> bytes:
    """Flip ``bits`` bits between two shares of the file."""
    damaged = np.frombuffer(data, np.uint8).copy()
    places = generator.integers(int(len(data) * start), max(int(len(data) * stop), 1), bits)
    damaged[places] ^= 1 << generator.integers(0, 8, bits).astype(np.uint8)
    return damaged.tobytes()


def block(data: bytes, generator: np.random.Generator) -> tuple[int, int]:
    """Where a block in the middle starts and ends: 1 to 10 % of the file."""
    length = int(len(data) * generator.uniform(0.01, 0.1)) + 1
    start = int(generator.uniform(0.1, 0.85) * len(data))
    return start, start + length


def sizes(data: bytes, generator: np.random.Generator) -> bytes:
    """A 32-bit field of the header claims the most there is."""
    place = int(generator.integers(4, min(len(data) - 4, 600)))
    return data[:place] + b"\x7f\xff\xff\xff" + data[place + 4 :]


def overwritten(data: bytes, generator: np.random.Generator, filling: Callable[[int], bytes]) -> bytes:
    start, stop = block(data, generator)
    return data[:start] + filling(stop - start) + data[stop:]


def swapped(data: bytes, generator: np.random.Generator) -> bytes:
    start, stop = block(data, generator)
    middle = (start + stop) // 2
    return data[:start] + data[middle:stop] + data[start:middle] + data[stop:]


DAMAGES: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "cut at the end": lambda data, rng: data[: int(len(data) * rng.uniform(0.1, 0.95))],
    "cut at the start": lambda data, rng: data[int(len(data) * rng.uniform(0.001, 0.3)) :],
    "a bit flipped": lambda data, rng: flip(data, rng, 0, 1, 1),
    "20 bits flipped in the middle": lambda data, rng: flip(data, rng, 0.1, 0.85, 20),
    "bits flipped at the start": lambda data, rng: flip(data, rng, 0, 600 / len(data), 4),
    "bits flipped in the index": lambda data, rng: flip(data, rng, 1 - 2500 / len(data), 1, 6),
    "a block of zeros": lambda data, rng: overwritten(data, rng, bytes),
    "a block of noise": lambda data, rng: overwritten(data, rng, rng.bytes),
    "a block lost": lambda data, rng: overwritten(data, rng, lambda _: b""),
    "two blocks swapped": swapped,
    "huge sizes": sizes,
    "noise appended": lambda data, rng: data + rng.bytes(int(rng.integers(1, 5000))),
}


def claim_a_billion_frames(mp4: bytes) -> bytes:
    """The clip with an index that claims a billion frames: decord asks for the memory, and aborts."""
    count = mp4.index(b"stts") + 12
    return mp4[:count] + b"\x40" + mp4[count + 1 :]


OUTCOMES = ("named", "same", "silent", "crash", "hang", "foreign")


def digest_video(source: str) -> str:
    check_video(source)
    return hashlib.sha256(read_video(source).tobytes()).hexdigest()


def digest_audio(source: str) -> str:
    check_audio(source)
    return hashlib.sha256(read_audio(source).tobytes()).hexdigest()


SENSES = {"video": digest_video, "audio": digest_audio}


@dataclass(frozen=True)
class Case:
    """A damaged file and what reading one sense of it came to.

    Attributes:
        outcome: ``named``: an error that names the file; ``same``: decodes to what the whole file does; ``silent``: to
            something else; ``crash``, ``hang``: of the child, named by its caller; ``foreign``: any other exception.
        said: the error.
    """

    container: str
    damage: str
    seed: int
    sense: str
    outcome: str
    said: str = ""


def judge(children: Children, sense: str, path: Path, whole: str, seconds: float) -> tuple[str, str]:
    """(outcome, what was said) of a damaged file, whose undamaged one has the digest ``whole``."""
    try:
        found = children.call(SENSES[sense], str(path), seconds=seconds)
    except MediaError as error:
        said = str(error)
        if not said.startswith(f"{path}: "):
            return "foreign", f"names another file: {said}"
        kinds = {"the decoder crashes": "crash", "the decoder hangs": "hang"}
        return next((kind for words, kind in kinds.items() if words in said), "named"), said.removeprefix(f"{path}: ")
    except Exception as error:
        return "foreign", repr(error)
    return ("same" if found == whole else "silent"), ""


def campaign(seeds: int, seconds: float = 30, containers: Iterable[str] = CONTAINERS, workers: int = 2) -> list[Case]:
    """Every container damaged in every way ``seeds`` times, each sense of it judged as ``check`` would."""
    with tempfile.TemporaryDirectory() as name, closing(Children()) as children, ThreadPoolExecutor(workers) as pool:
        plan = []
        for container in containers:
            folder = Path(name, container)
            folder.mkdir()
            whole = write_clip(folder, container)
            _, video, audio, _ = CONTAINERS[container]
            for sense in ["video"] * bool(video) + ["audio"] * bool(audio):
                digest = children.call(SENSES[sense], str(whole))
                plan += [(container, damage, seed, sense, whole, digest) for damage in DAMAGES for seed in range(seeds)]

        def run(step: tuple) -> Case:
            container, damage, seed, sense, whole, digest = step
            generator = np.random.default_rng([seed, list(DAMAGES).index(damage)])
            path = whole.with_name(f"{sense}_{list(DAMAGES).index(damage)}_{seed}{whole.suffix}")
            path.write_bytes(DAMAGES[damage](whole.read_bytes(), generator))
            result = judge(children, sense, path, digest, seconds)
            path.unlink()
            return Case(container, damage, seed, sense, *result)

        return list(tqdm(pool.map(run, plan), total=len(plan), unit="file"))
