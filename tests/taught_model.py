"""A tiny HumanOmni that knows a dozen demo clips by heart: it answers in the format, and needs picture and sound.

Asked ``OTHER_QUESTION``, it answers ``nobody``.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, AutoProcessor

import verl_omni.models  # noqa: F401
from verl_omni.corpora.demo import build_demo
from verl_omni.data.files import read_rows
from verl_omni.data.row import conversation
from verl_omni.models.humanomni.tiny import build_tiny
from verl_omni.prompts import answer_text, instruction

CLIPS, STEPS = 12, 70
OTHER_QUESTION = "Who laughs?"


@dataclass(frozen=True)
class Taught:
    model: Path
    rows: Path


def build_taught(folder: Path) -> Taught:
    """Write the model to ``folder/taught`` and its clips to ``folder/demo`` (some 15 s on one core)."""
    files = build_demo(folder / "demo", n_train=4, n_test=CLIPS, n_sft=4)
    source, out = build_tiny(folder / "tiny"), folder / "taught"
    processor = AutoProcessor.from_pretrained(source)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(source).train()
    rows = read_rows(files["test"])
    batch = teaching_batch(processor, rows + [with_other_question(row) for row in rows[:4]])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(STEPS):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return Taught(out, files["test"])


def with_other_question(row: dict) -> dict:
    prompt = [{"role": "user", "content": f"<video><audio>{instruction(OTHER_QUESTION)}"}]
    return row | {"prompt": prompt, "reward_model": {"ground_truth": "nobody"}}


def teaching_batch(processor, rows: list[dict]) -> dict[str, torch.Tensor]:
    """Prompts with their answers, right padded; the loss is on the answers."""
    samples = []
    for row in rows:
        messages = conversation(row["prompt"], row["videos"], row["audios"])
        sample = dict(
            processor.apply_chat_template(
                messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
            )
        )
        label = row["reward_model"]["ground_truth"]
        answer = answer_text(label, f"The person is {label}.") + "<|im_end|>"
        answer_ids = processor.tokenizer(answer, return_tensors="pt").input_ids
        prompt_length = sample["input_ids"].shape[1]
        sample["input_ids"] = torch.cat([sample["input_ids"], answer_ids], dim=1)
        sample["attention_mask"] = torch.ones_like(sample["input_ids"])
        sample["labels"] = sample["input_ids"].clone()
        sample["labels"][:, :prompt_length] = -100
        samples.append(sample)
    longest = max(sample["input_ids"].shape[1] for sample in samples)
    for sample in samples:
        missing = longest - sample["input_ids"].shape[1]
        for key, filler in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
            sample[key] = pad(sample[key], (0, missing), value=filler)
    return {key: torch.cat([sample[key] for sample in samples]) for key in samples[0]}
