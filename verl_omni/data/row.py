"""Rows: what verl reads of a clip."""

from verl_omni.corpora.listing import Clip
from verl_omni.prompts import answer_text, instruction


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
    answer = answer_text(clip.label, clip.reasoning)
    row = rl_row(clip, data_source, index)
    return {
        "data_source": data_source,
        "messages": [*row["prompt"], {"role": "assistant", "content": answer}],
        "videos": row["videos"],
        "audios": row["audios"],
        "extra_info": row["extra_info"],
    }
