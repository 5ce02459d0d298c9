"""The one kind of error that reading media raises."""

import os
import re
from pathlib import Path

REPLACE = "replace the file or remove the rows that name it"


class MediaError(ValueError):
    """A media file cannot be used; the message names the file, what was found, and the remedy."""


def existing(path: str | os.PathLike) -> Path:
    """Return ``path``, or raise ``MediaError`` if nothing, or an empty file, is there."""
    path = Path(path)
    if not path.exists():
        raise MediaError(f"{path}: no such file; correct the path in the rows or restore the file")
    if path.is_file() and path.stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty (0 bytes); {REPLACE}")
    return path


def reason(error: Exception) -> str:
    """Return what a library's error says, in a line, without decord's clock and source file."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[[\d:]+\] \S+: ", "", first)
