"""Decoded media on disk, so that a corpus is decoded once and not once per epoch, start and evaluation.

An entry is a safetensors file with one tensor, ``media``: uint8 frames ``[T, H, W, 3]`` as the model wants them (1.2 MB
for 8 of 224 px), or float32 sound ``[samples]`` at 16 kHz (64 kB a second). Its name is a hash of the source's content
and of all that decides what comes out: settings, and the versions of decoders. Entries appear whole, by a rename: any
number of processes and machines may use the folder, ``VERL_OMNI_MEDIA_CACHE`` in the environment (default
~/.cache/verl_omni/media, or under XDG_CACHE_HOME; 0: none), of at most ``VERL_OMNI_MEDIA_CACHE_GB`` (50).
"""

import hashlib
import json
import logging
import operator
import os
import time
import uuid
import zlib
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from filelock import FileLock

from verl_omni.media.audio import read_audio
from verl_omni.media.resize import FrameFormat
from verl_omni.media.video import VideoSource, chosen, read_video

logger = logging.getLogger(__name__)

FORMAT = 1  # raised whenever reading a file gives other frames or samples, or an entry has another layout
DECODERS = ("av", "decord", "pillow", "scipy", "soundfile")
TOUCH_AFTER = 3600  # seconds; when an entry was used is known to the hour, which spares shared disks
RACY = 2 * 10**9  # nanoseconds in which a clock may not tell two states of a file apart

Call = Callable[..., Any]  # of a function and its arguments

_digests: dict[Path, tuple[Hashable, str]] = {}


def fingerprint(value: object) -> str:
    """Hash of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def media_fingerprint(path: str | os.PathLike) -> str:
    """Hash of a media file's content, or of all files of a folder of frames; ``missing`` if there is none.

    A file is read once a process, and again when its inode, size or times change.
    """
    path = Path(path).absolute()
    if path.is_dir():
        return fingerprint([[file.name, media_fingerprint(file)] for file in sorted(path.iterdir()) if file.is_file()])
    if not path.is_file():
        return "missing"
    state = state_of(path)
    known, digest = _digests.get(path, (None, ""))
    if known != state:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        if time.time_ns() - path.stat().st_ctime_ns > RACY:
            _digests[path] = state, digest
    return digest


def state_of(source: VideoSource) -> Hashable:
    """Which file this is and in which state: another one is there as soon as it is written to or replaced."""
    if not isinstance(source, str | os.PathLike):
        return tuple(state_of(image) for image in source)
    path = Path(source).absolute()
    try:
        stat = path.stat()
        inside = tuple(state_of(entry) for entry in sorted(path.iterdir())) if path.is_dir() else ()
    except (OSError, ValueError):  # nothing there, no permission, too long a name, a zero byte in it
        return str(path)  # reading it says what is wrong
    return str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, inside


@cache
def _versions(video: str) -> list:
    """``video`` is the video decoder."""
    other = [] if video == "decord" else [video, version({"pyav": "av"}.get(video, video))]
    return [FORMAT, *(version(name) for name in DECODERS), *other]


class Store:
    """Entries below ``folder``, together at most ``max_bytes`` (and 1 % more for each process that writes)."""

    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes
        self.unmeasured = max_bytes  # bytes written since the folder was last measured; the first write measures it

    def entry(self, source: VideoSource, settings: tuple) -> Path | None:
        """Where what ``source`` decodes to with ``settings`` is kept; None if the source cannot be read."""
        paths = [source] if isinstance(source, str | os.PathLike) else source
        try:  # which decoder reads a file, its name decides too
            media = [[media_fingerprint(path), Path(path).suffix.lower()] for path in paths]
        except (OSError, ValueError):
            return None  # decoding it says what is wrong
        key = fingerprint([media, repr(settings), _versions(chosen())])
        return self.folder / key[:2] / f"{key}.safetensors"

    def find(self, path: Path, checked: bool) -> np.ndarray | None:
        """The media of an entry; None if they are not there, are damaged (logged), or not ``checked`` in full."""
        try:
            data = path.read_bytes()
            about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            array = safetensors.numpy.load(data)["media"]
            if zlib.crc32(array) != int(about["crc32"]):
                raise ValueError("another checksum")
            if time.time() - path.stat().st_mtime > TOUCH_AFTER:
                with suppress(OSError):  # another user's, who touches it, or a disk to read alone
                    os.utime(path)
        except (FileNotFoundError, NotADirectoryError):  # also where another process drops it meanwhile
            return None
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            logger.warning("%s: a damaged entry of the media cache (%s); it is made anew", path, error)
            return None
        return array if not checked or about["checked"] == "full" else None

    def keep(self, path: Path, media: np.ndarray, source: VideoSource, checked: bool) -> None:
        """Write an entry. A full disk, or a folder that cannot be written, is logged: training needs no cache."""
        media = np.ascontiguousarray(media)
        about = {"crc32": str(zlib.crc32(media.data)), "checked": "full" if checked else ""}
        about["source"] = json.dumps(source, default=str)
        temporary = path.with_suffix(f".{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(safetensors.numpy.save({"media": media}, about))
            self.unmeasured += temporary.stat().st_size
            temporary.replace(path)
            if self.unmeasured > self.max_bytes // 100:
                self.trim()
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            logger.warning("the media cache keeps nothing of %s: %s", source, error)

    def trim(self) -> None:
        """Drop what was not used for longest, until the bound holds."""
        files = []
        for path in self.folder.rglob("*.*"):
            with suppress(FileNotFoundError):  # dropped or renamed by another process
                stat = path.stat()
                files.append((stat.st_mtime, stat.st_size, path))
        total, self.unmeasured = sum(size for _, size, _ in files), 0
        for _, size, path in sorted(files):
            if total <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size

    def alone(self, name: str) -> AbstractContextManager:
        """Wait until no other process does ``name``; where the disk refuses the lock, all do: slower, not wrong."""
        try:
            return FileLock(self.folder / f"{name}.lock", fallback_to_soft=False).acquire()
        except OSError as error:
            logger.warning("%s: no lock (%s); processes that check one corpus at once each decode it", name, error)
            return nullcontext()


@cache
def _store(folder: str, gigabytes: str) -> Store:
    return Store(Path(folder).expanduser(), int(float(gigabytes) * 1e9))


def store() -> Store | None:
    """The store that the environment names; None if it is switched off, by itself or with all sharing."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get("VERL_OMNI_MEDIA_CACHE") or f"{caches}/verl_omni/media"
    if folder == "0" or os.environ.get("VERL_OMNI_SHARING") == "0":
        return None
    return _store(folder, os.environ.get("VERL_OMNI_MEDIA_CACHE_GB") or "50")


def read_frames(
    source: VideoSource, num_frames: int, frame_format: FrameFormat, call: Call = operator.call
) -> np.ndarray:
    """Return ``read_video``'s frames as uint8 ``[num_frames, *size, 3]``, from the store if they are there.

    Args:
        call: Where they are decoded otherwise, such as ``Children.call``; default: in this process.
    """
    settings = num_frames, frame_format
    return stored(source, ("video", *settings), lambda: call(decode_frames, source, *settings))


def decode_frames(source: VideoSource, num_frames: int, frame_format: FrameFormat) -> np.ndarray:
    return frame_format.apply(read_video(source, num_frames))


def read_sound(source: str | os.PathLike, sampling_rate: int = 16000, call: Call = operator.call) -> np.ndarray:
    """``read_audio``'s float32 ``[samples]``, from the store if they are there; ``call`` as for ``read_frames``."""
    return stored(source, ("audio", sampling_rate), lambda: call(read_audio, source, sampling_rate))


def stored(source: VideoSource, settings: tuple, decode: Callable[[], np.ndarray], checked: bool = False) -> np.ndarray:
    """What the store has of ``source`` (by a ``decode`` that checks, if ``checked``), else ``decode()``, then kept."""
    if not (kept := store()):
        return decode()
    before = state_of(source)
    entry = kept.entry(source, settings)
    media = kept.find(entry, checked) if entry else None
    if media is None:
        media = decode()
        if entry and state_of(source) == before:  # else it may be another content than the entry's
            kept.keep(entry, media, source, checked)
    return media
