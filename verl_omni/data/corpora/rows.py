"""Rows files: clips as verl reads them, in parquet, json or jsonl."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_omni.data.corpora.listing import Clip
from verl_omni.prompts import instruction


def rl_row(clip: Clip, data_source: str, index: int) -> dict:
    """A row for GRPO and for evaluation: the prompt and the label (verl's `RLHFDataset` keys)."""
    return {
        "data_source": data_source,
        "prompt": [{"role": "user", "content": f"<video><audio>{instruction()}"}],
        "videos": [str(clip.media.resolve())],
        "audios": [str(clip.media.resolve())],
        "ability": "emotion",
        "reward_model": {"style": "rule", "ground_truth": clip.label},
        "extra_info": {"index": index, "split": clip.split, "id": f"{data_source}/{clip.id}"},
    }


def sft_row(clip: Clip, data_source: str, index: int) -> dict:
    """A row for supervised fine-tuning (verl's `MultiTurnSFTDataset`).

    The answer is `<think>…</think>` and `<answer>…</answer>` where the clip has an explanation, else the bare label
    (the MAFW-DFEW-SFT baseline).
    """
    answer = f"<think>{clip.reasoning}</think>\n<answer>{clip.label}</answer>" if clip.reasoning else clip.label
    row = rl_row(clip, data_source, index)
    return {
        "data_source": data_source,
        "messages": [*row["prompt"], {"role": "assistant", "content": answer}],
        "videos": row["videos"],
        "audios": row["audios"],
        "extra_info": row["extra_info"],
    }


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
