"""Rows files: parquet, json or jsonl."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_rows(rows: list[dict], path: Path) -> None:
    """Write rows as parquet, the format verl's recipes name."""
    pq.write_table(pa.Table.from_pylist(rows), path)


def read_rows(path: str | Path) -> list[dict]:
    """Read a rows file (`.parquet`, `.json` list or `.jsonl`).

    Raises:
        ValueError: The file has another ending, or is empty.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
    elif path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    elif path.suffix == ".json":
        rows = json.loads(path.read_text(encoding="utf-8"))
    else:
        raise ValueError(f"{path}: rows are read from .parquet, .json or .jsonl files")
    if not rows:
        raise ValueError(f"{path}: no rows in it")
    return rows
