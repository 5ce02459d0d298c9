"""The one kind of error that reading media raises, and the boundary at which others become it."""

import re
from collections.abc import Callable
from functools import wraps
from os import PathLike
from pathlib import Path
from typing import Any

import av
import soundfile

from verl_omni.errors import InputError
from verl_omni.media.container import DamagedError

REPLACE = "replace the file or remove the rows that name it"
DAMAGE = (DamagedError, av.error.InvalidDataError, soundfile.LibsndfileError)  # not what the system refuses


class MediaError(InputError):
    """A media file cannot be used; the message names the file, what was found, and the remedy."""


class NoAudioError(MediaError):
    """Sound was expected, but the file has no whole audio track. What ``no_audio`` policies are about."""


class EmptyAudioError(NoAudioError):
    """There is an audio track, but less sound in it than one window of Whisper's spectrum takes (25 ms)."""


class DamagedAudioError(NoAudioError):
    """The audio track breaks off, or is damaged within: less decodes than there should be."""


def existing(path: str | PathLike) -> Path:
    """Return ``path`` if a folder or a file with something in it is there, else ``MediaError`` (a pipe would hang)."""
    path = Path(path)
    if not path.exists():
        raise MediaError(f"{path}: no such file; correct the path in the rows or restore the file")
    if not (path.is_file() or path.is_dir()):
        raise MediaError(f"{path}: neither a file nor a folder, but a pipe, socket or device; {REPLACE}")
    if path.is_file() and path.stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty (0 bytes); {REPLACE}")
    return path


def media_boundary(problem: str, damaged: type[MediaError] = MediaError) -> Callable[[Callable], Callable]:
    """Decorate a function of a source: what decoders and the system raise becomes ``MediaError``, damage ``damaged``.

    Damage makes them raise anything, from ``TypeError`` to ``MemoryError``; ``problem`` says what failed.
    """

    def decorate(read: Callable) -> Callable:
        @wraps(read)
        def reading(source: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return read(source, *args, **kwargs)
            except MediaError:
                raise
            except Exception as error:
                kind = damaged if isinstance(error, DAMAGE) else MediaError
                text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
                reason = re.sub(r"^(\[[\d:]+\] \S+: )+", "", text.splitlines()[0])  # but for decord's clock and file
                raise kind(f"{named(source)}: {problem} ({reason}); {REPLACE}") from error

        return reading

    return decorate


def named(source: Any) -> str:
    """A source as messages name it."""
    return f"{len(source)} images" if isinstance(source, list | tuple) else str(source)
