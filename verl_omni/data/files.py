"""Rows files, and other tables that users bring: parquet, json, jsonl or csv."""

import csv
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_omni.errors import InputError


def write_rows(rows: list[dict], path: Path) -> None:
    """Write rows as parquet, the format verl's recipes name."""
    pq.write_table(pa.Table.from_pylist(rows), path)


def read_rows(path: str | Path) -> list[dict]:
    """Read rows from ``.parquet``, ``.json`` (a list), ``.jsonl`` or ``.csv``; ``InputError`` if they are not that."""
    path = Path(path)
    if path.suffix not in READERS:
        raise InputError(f"{path}: rows are read from {', '.join(READERS)} files")
    try:
        rows = READERS[path.suffix](path)
    except (ValueError, RecursionError, csv.Error, pa.ArrowException) as error:  # JSON's and UTF-8's are ValueErrors
        raise InputError(f"{path}: not readable as {path.suffix} ({error}); write it again") from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: a list of rows was expected, a {type(rows).__name__} found in it")
    if not rows:
        raise InputError(f"{path}: no rows in it")
    return rows


def _read_lines(path: Path) -> list:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return rows


READERS: dict[str, Callable[[Path], list]] = {
    ".parquet": lambda path: pq.read_table(path).to_pylist(),
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".jsonl": _read_lines,
    ".csv": lambda path: list(csv.DictReader(StringIO(path.read_text(encoding="utf-8-sig")))),
}
