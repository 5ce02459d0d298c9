"""The results file: JSON lines, one per answered row, appended and synced to disk as answers come.

A line's ``key`` is a hash of all that decides the answer: row id, prompt, media content, model files, sampling settings
and variant. A run that finds a key on file does not compute that answer again.
"""

import fcntl
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from verl_omni.errors import InputError
from verl_omni.media.store import fingerprint, media_fingerprint

# The media that a model is given: a row's own, every frame in the mean colour, silence of the same length.
NORMAL, VIDEO_BLANKED, AUDIO_MUTED = VARIANTS = ("normal", "video_blanked", "audio_muted")
SMALL = 64 * 2**20  # bytes of a file that is read to know its state; a tokenizer is smaller, weights are larger


class ResultsError(InputError):
    """A results file that cannot be used; the message names file, line and remedy."""


@dataclass(frozen=True)
class Answer:
    """One answered (or failed) row."""

    key: str  # hash of everything the answer depends on
    model: str  # name the report shows
    data_source: str
    id: str  # the row's extra_info.id
    variant: str  # of `VARIANTS`
    label: str  # ground truth
    question: str  # the prompt's text without media placeholders
    videos: list[str | list[str]]  # absolute paths, as those of `audios`
    audios: list[str]
    completion: str = ""  # generated text; empty if the row failed
    finish_reason: str = ""  # vLLM's: stop, or length for a text cut off
    error: str = ""  # why the row has no completion; empty if it has one
    actor: str = ""  # who is seen, where the row says so


ANSWER = TypeAdapter(Answer)


def model_fingerprint(folder: Path) -> str:
    """Hash of a model's files, those in its subfolders too: of their content, or of size and time if too large."""

    def state(file: Path) -> object:
        size = file.stat().st_size
        return media_fingerprint(file) if size <= SMALL else [size, file.stat().st_mtime_ns]

    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return fingerprint([[str(file.relative_to(folder)), state(file)] for file in files])


def read_answers(path: str | Path) -> list[Answer]:
    """Read a results file, but for a torn last line, which a killed run leaves; ``ResultsError`` if it is none."""
    path = Path(path)
    if not path.is_file():
        raise ResultsError(f"{path}: no such results file; `python -m verl_omni evaluate` writes them")
    *lines, _torn = path.read_bytes().split(b"\n")
    answers = []
    for number, line in enumerate(lines, start=1):
        try:
            answers.append(ANSWER.validate_json(line, strict=True))
        except ValidationError as error:
            wrong = "{loc}: {msg}".format(**error.errors()[0])
            raise ResultsError(
                f"{path}, line {number}: not an answer of this format ({wrong}); repair or delete the line"
            ) from error
    return answers


class ResultsFile(AbstractContextManager["ResultsFile"]):
    """A results file open for appending; a context manager that holds the file's lock.

    Args:
        path: Results file, created if absent.
        keys: Key of each ``(model, id, variant)`` of this run. Answers on file for one of these under another key were
            made with other settings, prompt, media or weights: they move to ``PATH.superseded``.

    Raises:
        ResultsError: Another process writes to the file, or it holds something else.
    """

    def __init__(self, path: str | Path, keys: dict[tuple[str, str, str], str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        self._lock = self.path.with_name(self.path.name + ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResultsError(f"{self.path}: another evaluation writes to it; wait, or use another --out") from error
        answers = read_answers(self.path)
        self.answers = {a.key: a for a in answers if keys.get((a.model, a.id, a.variant), a.key) == a.key}
        stale = [answer for answer in answers if answer.key not in self.answers]
        self.superseded = len(stale)
        if stale:
            with self.path.with_name(self.path.name + ".superseded").open("ab") as file:
                _append(file, stale)
        # Rewriting also drops a torn last line, which the next answer would otherwise be glued to.
        replacement = self.path.with_name(self.path.name + ".new")
        with replacement.open("wb") as file:
            _append(file, self.answers.values())
        replacement.replace(self.path)
        self._file = self.path.open("ab")

    def add(self, answer: Answer) -> None:
        """Append an answer; it is on disk when this returns."""
        _append(self._file, [answer])
        self.answers[answer.key] = answer

    def __exit__(self, *_exception: object) -> None:
        self._file.raw.close()  # every answer was flushed; what a full disk refused is not tried again
        self._lock.close()


def _append(file: BufferedWriter, answers: Iterable[Answer]) -> None:
    try:
        file.write(b"".join(ANSWER.dump_json(answer) + b"\n" for answer in answers))
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise ResultsError(f"{file.name}: {error.strerror}; make room, and run the same command again") from error
