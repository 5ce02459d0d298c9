"""What the rollouts of a prompt share, so that a clip is decoded and processed once and not once per rollout.

Caches are bounded, keyed by content, and never change a result. ``VERL_OMNI_SHARING=0`` in the environment switches all
sharing of this package off: verl's plain behaviour, for comparison.
"""

import os
import weakref
from collections.abc import Callable, Hashable, Iterable
from operator import attrgetter
from threading import Condition
from typing import Any, TypeVar

import numpy as np
from cachetools import LRUCache, cachedmethod

from verl_omni.media import read_video
from verl_omni.media.resize import FrameFormat
from verl_omni.media.store import read_frames, read_sound, state_of
from verl_omni.media.video import VideoSource

Value = TypeVar("Value", bound=Any)  # has .nbytes: an array or a tensor


def enabled() -> bool:
    return os.environ.get("VERL_OMNI_SHARING", "1") != "0"


class ContentCache:
    """Values by key, of at most ``max_bytes`` together: the least recently used are dropped, larger ones not kept.

    Threads that ask for one key wait for one computation. ``size_of`` gives a value's bytes.
    """

    def __init__(self, max_bytes: int, size_of: Callable[[Any], int] = attrgetter("nbytes")):
        self._values: LRUCache[Hashable, Any] = LRUCache(max_bytes, getsizeof=size_of)
        self._changed = Condition()

    @cachedmethod(attrgetter("_values"), lambda _, key, compute: key, condition=attrgetter("_changed"))
    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """The value of ``key``, from ``compute()`` if it is not there. What ``compute`` raises is not kept."""
        return compute()

    def find(self, key: Hashable) -> Any | None:
        """The value of ``key`` if it is there, else None; waits for nobody's computation."""
        with self._changed:
            return self._values.get(key)

    def clear(self, keys: Iterable[Hashable] | None = None) -> None:
        """Drop the values of ``keys``, or all."""
        with self._changed:
            for key in list(self._values if keys is None else keys):
                self._values.pop(key, None)


# In each process that decodes (verl's agent-loop workers). Frames of 720p are 22 MB a clip, pixels and mel 6.3 MB.
DECODED = ContentCache(max_bytes=512 * 2**20)
PROCESSED = ContentCache(max_bytes=512 * 2**20)

_keys: dict[int, Hashable] = {}  # id of an array that lives -> what it was decoded from


def read_video_once(source: VideoSource, num_frames: int, frame_format: FrameFormat | None = None) -> np.ndarray:
    """``read_video``, or with a format ``read_frames``, by way of the cache; read-only, since others hold the array."""
    if frame_format is None or not enabled():
        return _once(("video", num_frames), source, lambda: read_video(source, num_frames))
    return _once(("video", num_frames, frame_format), source, lambda: read_frames(source, num_frames, frame_format))


def read_audio_once(source: str | os.PathLike, sampling_rate: int = 16000) -> np.ndarray:
    """``read_sound``, which see, by way of the cache; read-only, since others hold the same array."""
    return _once(("audio", sampling_rate), source, lambda: read_sound(source, sampling_rate))


def processed_once(media: Any, settings: Hashable, compute: Callable[[], Value]) -> Value:
    """``compute()``, which depends on ``media`` and ``settings`` alone; once if this module decoded ``media``."""
    key = _keys.get(id(media))
    return PROCESSED.get((key, settings), compute) if key and enabled() else compute()


def _once(settings: tuple, source: VideoSource, read: Callable[[], np.ndarray]) -> np.ndarray:
    if not enabled():
        return read()
    key = (settings, state_of(source))

    def decode() -> np.ndarray:
        array = read()
        array.setflags(write=False)
        _keys[id(array)] = key
        weakref.finalize(array, _keys.pop, id(array))
        return array

    return DECODED.get(key, decode)
