"""Rows files -> rows whose media are known to be usable.

A row has verl's keys: ``prompt`` (or ``messages``) with one ``<video>`` / ``<audio>`` per path in ``videos`` /
``audios``. Paths may be relative to the folder of the rows file. A modality that a row doesn't have is left out.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from verl_omni.data.files import read_rows
from verl_omni.media import MediaError, NoAudioError, existing, read_audio, read_video, sound_track_seconds

logger = logging.getLogger(__name__)

MEDIA_KEYS = {"videos": "<video>", "audios": "<audio>"}
MODALITIES = tuple(tag.strip("<>") for tag in MEDIA_KEYS.values())
MEDIA_CHECKS, NO_AUDIO_POLICIES = ("full", "exists"), ("error", "video_only")
LISTED = 20  # problems spelled out in an error; the rest is counted


class RowsError(ValueError):
    """Rows that cannot be trained on; the message lists rows and files, what was found, and the remedy."""


@dataclass
class Row:
    """One row, and where it stands."""

    data: dict
    file: str
    number: int  # from 0

    def __str__(self) -> str:
        return f"{self.file} row {self.number}"

    def media(self) -> Iterator[tuple[str, str | list[str]]]:
        """Yield ("videos" | "audios", source) for each of the row's media."""
        for key in MEDIA_KEYS:
            for source in self.data.get(key) or []:
                yield key, source


def load_rows(files: Sequence[str], max_samples: int = -1, shuffle: bool = False, seed: int | None = None) -> list[Row]:
    """Read rows files (parquet, json, jsonl) and make their media paths absolute.

    ``max_samples``, ``shuffle`` and ``seed`` select rows as verl's datasets do: the first, or random ones.
    """
    rows = [Row(_absolute(data, file), str(file), i) for file in files for i, data in enumerate(read_rows(file))]
    if not 0 < max_samples < len(rows):
        return rows
    chosen = (
        np.random.default_rng(seed).choice(len(rows), max_samples, replace=False) if shuffle else range(max_samples)
    )
    return [rows[index] for index in chosen]


def _absolute(data: dict, file: str) -> dict:
    if not isinstance(data, dict):
        raise RowsError(f"{file}: a list of rows was expected, {data!r} found in it")
    folder = Path(file).absolute().parent

    def resolve(source: str | list[str]) -> str | list[str]:
        return [str(folder / frame) for frame in source] if isinstance(source, list) else str(folder / source)

    return data | {key: [resolve(source) for source in data[key]] for key in MEDIA_KEYS if data.get(key)}


def keep_modalities(rows: list[Row], prompt_key: str, modalities: Sequence[str]) -> None:
    """Take every other modality out of the rows, in place: ``["video"]`` makes an experiment without sound.

    Raises:
        ValueError: an unknown modality, or none.
    """
    if not modalities or set(modalities) - set(MODALITIES):
        raise ValueError(f"modalities={list(modalities)}; it must be some of {', '.join(MODALITIES)}")
    for key, modality in zip(MEDIA_KEYS, MODALITIES, strict=True):
        if modality not in modalities:
            for row in rows:
                _drop(row.data, prompt_key, key)


def check_rows(
    rows: list[Row],
    prompt_key: str = "prompt",
    num_frames: int = 8,
    media_check: str = "full",
    no_audio: str = "error",
) -> None:
    """Check every row's placeholders, and every media file once, in parallel and with a progress bar.

    Args:
        rows: changed in place by ``no_audio="video_only"``: a row with a video whose sound file has no audio track
            loses its ``<audio>``.
        media_check: ``full`` decodes what training will read; ``exists`` only looks for files that are not empty, with
            an audio track where one is wanted.
        no_audio: what a clip without an audio track is, where ``audios`` names it: an ``error``, or ``video_only``.

    Raises:
        RowsError: placeholders without media (or the reverse), a missing label, unusable files.
    """
    _check_option("media_check", media_check, MEDIA_CHECKS)
    _check_option("no_audio", no_audio, NO_AUDIO_POLICIES)
    malformed = [f"{row}: {problem}" for row in rows if (problem := _malformed(row.data, prompt_key))]
    _raise_if(malformed, len(rows), "correct the rows")

    # A clip is in many rows, and names the same file for sight and sound: each is read once.
    sources = {(key, _hashable(source)) for row in rows for key, source in row.media()}
    errors = _media_errors(sorted(sources, key=str), READERS[media_check], num_frames)
    silent = {source for source, error in errors.items() if isinstance(error, NoAudioError)}
    if no_audio == "video_only":
        mute = [row for row in rows if row.data.get("videos") and _sources(row) & silent]
        for row in mute:
            _drop(row.data, prompt_key, "audios")
        if mute:
            logger.warning("%d rows have no audio track and become video only, the first is %s", len(mute), mute[0])
    unusable = [f"{row}: {errors[source]}" for row in rows for source in sorted(_sources(row) & set(errors), key=str)]
    hint = "; clips without sound can be used with data.no_audio=video_only" if silent else ""
    _raise_if(unusable, len(rows), f"repair the {len(errors)} files, or leave these rows out{hint}")


# What is read of a source by media_check and key; both raise MediaError.
READERS: dict[str, dict[str, Callable]] = {
    "full": {"videos": read_video, "audios": lambda source, _: read_audio(source)},
    "exists": {
        "videos": lambda source, _: [existing(part) for part in ([source] if isinstance(source, str) else source)],
        "audios": lambda source, _: sound_track_seconds(source),
    },
}


def _media_errors(sources: list[tuple], readers: dict[str, Callable], num_frames: int) -> dict[tuple, MediaError]:
    def read(source: tuple) -> MediaError | None:
        key, file = source
        try:
            readers[key](file if isinstance(file, str) else list(file), num_frames)
        except MediaError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the GIL
        results = list(tqdm(pool.map(read, sources), total=len(sources), desc="checking media", unit="file"))
    return {source: error for source, error in zip(sources, results, strict=True) if error is not None}


def _malformed(data: dict, prompt_key: str) -> str | None:
    """Return what is wrong with a row apart from its files, if anything."""
    if not data.get(prompt_key):
        return f"no {prompt_key!r}; its columns are {', '.join(sorted(data))}"
    if prompt_key == "prompt" and not (data.get("reward_model") or {}).get("ground_truth"):
        return "no label in reward_model.ground_truth"
    if prompt_key == "prompt" and not data.get("data_source"):
        return "no data_source"
    text = "".join(message["content"] for message in data[prompt_key])
    if "<image>" in text or data.get("images"):
        return "images; HumanOmni sees videos, a still image is a video given as a list of one file"
    for key, tag in MEDIA_KEYS.items():
        if text.count(tag) != len(data.get(key) or []):
            return f"{text.count(tag)} {tag} in {prompt_key!r} and {len(data.get(key) or [])} paths in {key!r}"
    return None


def _drop(data: dict, prompt_key: str, key: str) -> None:
    if data.get(prompt_key):  # else the check of the rows has more to say
        data[prompt_key] = [m | {"content": m["content"].replace(MEDIA_KEYS[key], "")} for m in data[prompt_key]]
    data[key] = None


def _hashable(source: str | list[str]) -> str | tuple[str, ...]:
    return source if isinstance(source, str) else tuple(source)


def _sources(row: Row) -> set[tuple]:
    return {(key, _hashable(source)) for key, source in row.media()}


def _check_option(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"data.{name}={value}; it must be one of {', '.join(allowed)}")


def _raise_if(problems: list[str], total: int, remedy: str) -> None:
    if problems:
        more = [f"... and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        raise RowsError("\n".join([f"{len(problems)} problems in {total} rows; {remedy}:", *problems[:LISTED], *more]))
