"""Rows: what verl reads of a clip."""

from verl_omni.corpora.listing import Clip
from verl_omni.prompts import QUESTION, answer_text, instruction


def rl_row(clip: Clip, data_source: str, index: int, **about: object) -> dict:
    """A row for GRPO and for evaluation: the prompt and the label (verl's `RLHFDataset` keys).

    Args:
        about: What else `extra_info` says, such as the label's vocabulary.
    """
    asked = clip.question or QUESTION
    source = clip.corpus or data_source
    about |= {"index": index, "split": clip.split, "id": f"{source}/{clip.id}"}
    return {
        "data_source": source,
        "prompt": _user(asked if "<think>" in asked else instruction(asked)),
        "videos": [str(clip.media.resolve())],
        "audios": [str(clip.media.resolve())],
        "ability": "emotion",
        "reward_model": {"style": "rule", "ground_truth": clip.label},
        "extra_info": about | ({"actor": clip.actor} if clip.actor else {}),
    }


def sft_row(clip: Clip, data_source: str, index: int, **about: object) -> dict:
    """A row for supervised fine-tuning (verl's `MultiTurnSFTDataset`).

    The answer is `<think>…</think>` and `<answer>…</answer>` where the clip has an explanation, else the bare label
    (the MAFW-DFEW-SFT baseline); the question asks for the former only where the answer has it.
    """
    asked = clip.question or (instruction() if clip.reasoning else QUESTION)
    answer = {"role": "assistant", "content": answer_text(clip.label, clip.reasoning)}
    row = rl_row(clip, data_source, index, **about)
    kept = {key: row[key] for key in ("data_source", "videos", "audios", "extra_info")}
    return {"messages": [*_user(asked), answer], **kept}


def _user(question: str) -> list[dict]:
    return [{"role": "user", "content": f"<video><audio>{question}"}]
