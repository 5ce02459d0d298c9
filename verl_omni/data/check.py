"""Rows files -> rows that are known to be usable: their columns by ``verl_omni.data.row``, their media by decoding."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from verl_omni.data.files import read_rows
from verl_omni.data.row import MEDIA_KEYS, ConversationRow, PromptRow, RowSchema, conversation, problems_of
from verl_omni.errors import InputError
from verl_omni.media import MediaError, NoAudioError
from verl_omni.media.check import check_audio, check_exists, check_sound_starts, check_video
from verl_omni.media.child import Children
from verl_omni.media.resize import HUMANOMNI, FrameFormat
from verl_omni.media.store import fingerprint, store, stored

logger = logging.getLogger(__name__)

MODALITIES = tuple(tag.strip("<>") for tag in MEDIA_KEYS.values())
MEDIA_CHECKS, NO_AUDIO_POLICIES = ("full", "exists"), ("error", "video_only", "silence", "drop")
SILENCE = Path(__file__).with_name("silence.flac")  # ten seconds, which is what the original hears
LISTED = 20  # problems spelled out in an error; the rest is counted
PROCESSES = 16  # that decode, at most; each takes 0.1 GB


class RowsError(InputError):
    """Rows that cannot be trained on; the message lists rows and files, what was found, and the remedy."""


@dataclass
class Row:
    """One row, and where it stands."""

    data: dict
    file: str
    number: int  # from 0
    key: str = PromptRow.key  # the column of its conversation

    def __str__(self) -> str:
        return f"{self.file} row {self.number}"

    def sources(self) -> set[tuple]:
        """Of each of the row's media, ("videos" | "audios", its path or tuple of paths)."""
        media = ((key, source) for key in MEDIA_KEYS for source in self.data.get(key) or [])
        return {(key, source if isinstance(source, str) else tuple(source)) for key, source in media}

    def without(self, modality: str) -> "Row":
        """The row without its ``videos`` or ``audios``, and without their tags in the conversation."""
        tag = MEDIA_KEYS[modality]
        turns = [turn | {"content": turn["content"].replace(tag, "")} for turn in self.data[self.key]]
        return replace(self, data=self.data | {self.key: turns, modality: None})

    def conversation(self) -> list[dict]:
        return conversation(self.data[self.key], self.data.get("videos"), self.data.get("audios"))

    def soundless(self, no_audio: str) -> "Row | None":
        """What ``no_audio`` makes of the row, whose clip has no sound: None drops it, one of sound alone stays."""
        if no_audio == "drop":
            return None
        if no_audio == "silence":
            return replace(self, data=self.data | {"audios": [str(SILENCE)] * len(self.data["audios"])})
        return self.without("audios") if no_audio == "video_only" and self.data.get("videos") else self


def load_rows(
    files: Sequence[str],
    schema: type[RowSchema] | None = None,
    key: str | None = None,
    max_samples: int = -1,
    shuffle: bool = False,
    seed: int | None = None,
) -> list[Row]:
    """Read rows files (parquet, json, jsonl), look at every row, and make media paths absolute.

    Args:
        files: each with paths relative to its own folder.
        schema, key: what the rows must be, and the column of the conversation; default: ``messages`` if all have that.
        max_samples, shuffle, seed: select rows as verl's datasets do: the first, or random ones.

    Raises:
        RowsError: rows that do not fit the schema, all of them by file and row.
    """
    rows = [Row(data, str(file), number) for file in files for number, data in enumerate(read_rows(file))]
    if 0 < max_samples < len(rows):
        random = np.random.default_rng(seed)
        chosen = random.choice(len(rows), max_samples, replace=False) if shuffle else range(max_samples)
        rows = [rows[index] for index in chosen]
    if schema is None:
        talks = all(isinstance(row.data, dict) and ConversationRow.key in row.data for row in rows)
        schema = ConversationRow if talks else PromptRow
    key = key or schema.key
    wrong = [f"{row}: {said}" for row in rows for said in problems_of(row.data, schema, key)]
    _raise_if(wrong, len(rows), "correct the rows")
    for row in rows:
        row.key, folder = key, Path(row.file).absolute().parent
        for media in filter(row.data.get, MEDIA_KEYS):
            row.data[media] = [
                str(folder / source) if isinstance(source, str) else [str(folder / frame) for frame in source]
                for source in row.data[media]
            ]
    return rows


def keep_modalities(rows: list[Row], modalities: Sequence[str]) -> None:
    """Take every other modality out of the rows, in place; ``InputError`` if one is unknown, or none named."""
    if not modalities or set(modalities) - set(MODALITIES):
        raise InputError(f"modalities={list(modalities)}; it must be some of {', '.join(MODALITIES)}")
    for key, modality in zip(MEDIA_KEYS, MODALITIES, strict=True):
        if modality not in modalities:
            rows[:] = [row.without(key) for row in rows]


def check_media(
    rows: list[Row],
    num_frames: int = 8,
    media_check: str = "full",
    no_audio: str = "error",
    frame_format: FrameFormat | None = None,
) -> None:
    """Check every media file once, in parallel and with a progress bar; files in the media cache have been checked.

    Args:
        media_check: ``full`` decodes what training will read; ``exists`` only looks for files that are not empty, with
            the start of a sound where one is wanted.
        no_audio: what becomes, in place, of a row whose clip has no whole sound: an ``error``, ``video_only`` (it loses
            its ``<audio>``), ``silence`` (ten seconds of it) or ``drop``.
        frame_format: in which frames are kept; default: HumanOmni's.

    Raises:
        RowsError: unusable files, by file and row.
    """
    for name, value, allowed in (("media_check", media_check, MEDIA_CHECKS), ("no_audio", no_audio, NO_AUDIO_POLICIES)):
        if value not in allowed:
            raise InputError(f"data.{name}={value}; it must be one of {', '.join(allowed)}")
    sources = set().union(*(row.sources() for row in rows))  # a clip is in many rows
    errors = _media_errors(sorted(sources, key=str), media_check, num_frames, frame_format or HUMANOMNI)
    silent = {source for source, error in errors.items() if isinstance(error, NoAudioError)}
    settle_silent(rows, silent, no_audio)
    unusable = [f"{row}: {errors[source]}" for row in rows for source in sorted(row.sources() & set(errors), key=str)]
    hint = "; clips without a whole sound can be used with data.no_audio=video_only" if silent else ""
    _raise_if(unusable, len(rows), f"repair the {len(errors)} files, or leave these rows out{hint}")


def settle_silent(rows: list[Row], silent: set[tuple], no_audio: str) -> None:
    """Make of the rows with a sound in ``silent`` what the policy says, in place; ``RowsError`` if none is left."""
    mute = [row for row in rows if row.sources() & silent]
    if mute and no_audio != "error":
        fate = {"video_only": "become video only", "silence": "hear silence", "drop": "are dropped"}[no_audio]
        logger.warning("%d rows have no whole sound and %s, the first is %s", len(mute), fate, mute[0])
    settled = [row.soundless(no_audio) if row.sources() & silent else row for row in rows]
    rows[:] = [row for row in settled if row is not None]
    if mute and not rows:
        raise RowsError(
            f"{mute[0].file}: no row is left of {len(mute)}, whose clips have no whole sound; keep them: video_only"
        )


def settle_sounds(rows: list[Row], no_audio: str) -> None:
    """As ``check_media`` does of clips without sound; a file that does not decode is left to whoever reads it."""
    if no_audio != "error":
        audios = (source for row in rows for source in row.data.get("audios") or [])
        settle_silent(rows, silent_sources(audios), no_audio)


def silent_sources(files: Iterable[str]) -> set[tuple]:
    """The sources, as ``settle_silent`` takes them, of those clips that have no whole sound; each is decoded."""
    errors = _media_errors(sorted({("audios", file) for file in files}), "full", 0)
    return {source for source, error in errors.items() if isinstance(error, NoAudioError)}


def _media_errors(
    sources: list[tuple], media_check: str, num_frames: int = 8, frame_format: FrameFormat = HUMANOMNI
) -> dict[tuple, MediaError]:
    exists = {"videos": check_exists, "audios": check_sound_starts}
    full: dict[str, Callable] = {"videos": check_video, "audios": check_audio}
    settings = {"videos": ("video", num_frames, frame_format), "audios": ("audio", 16000)}
    decoded: list[tuple] = []
    errors: dict[tuple, MediaError] = {}
    kept = store()
    # Of processes that start with one corpus, such as ranks, the first decodes it and the others find it in the store.
    turn = kept.alone(fingerprint(sources)) if kept and media_check == "full" else nullcontext()

    def read(source: tuple) -> None:
        key, file = source

        def decode() -> np.ndarray:
            media = children.call(full[key], file, *settings[key][1:])
            decoded.append(source)
            return media

        try:
            if media_check == "exists":
                children.call(exists[key], file)
            else:
                stored(file, settings[key], decode, checked=True)
        except MediaError as error:
            errors[source] = error

    # A decoder that dies of a file takes no more than its own process with it.
    with turn, closing(Children()) as children, ThreadPoolExecutor(min(os.cpu_count() or 1, PROCESSES)) as pool:
        list(tqdm(pool.map(read, sources), total=len(sources), desc="checking media", unit="file"))
    if media_check == "full":
        unusable = f", {len(errors)} soundless or unusable" if errors else ""
        where = f"from {kept.folder}" if kept else "(no media cache)"
        found = len(sources) - len(decoded) - len(errors)
        tqdm.write(f"media files: {len(decoded)} decoded, {found} {where}{unusable}", file=sys.stderr)
    return errors


def _raise_if(problems: list[str], total: int, remedy: str) -> None:
    if problems:
        more = [f"... and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        raise RowsError("\n".join([f"{len(problems)} problems in {total} rows; {remedy}:", *problems[:LISTED], *more]))
