"""A whole step of one prompt at HumanOmni-0.5B's widths: rollouts, log-probabilities, reference and update.

In three ways: verl's as it is, verl's with this package's sharing, and the original's, which is a step of TRL 0.14:
transformers generates all rollouts of a prompt at once, each with its own copy of clip and prompt; then the reference's
forward and the actor's forward and backward run over whole sequences, with all of their logits.
"""

import asyncio
import os
import time
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM

from verl_omni.evaluation.answering import Settings, start_engine
from verl_omni.media import cache
from verl_omni.models import tower_outputs
from verl_omni.models.humanomni.configuration import HumanOmniConfig
from verl_omni.models.humanomni.processing import HumanOmniProcessor

from . import ROLLOUTS, Figures, plain_or_shared
from .prompt import messages_about, roll_out
from .training import Batch, full_size_config, step, timed_towers

ANSWER = 128  # tokens
WAYS = ("original", "plain", "now")


def step_of_trl(actor: torch.nn.Module, reference: torch.nn.Module, batch: Batch, prompt: int) -> None:
    """Reference and update of sequences that begin with ``prompt`` tokens; log-probabilities row by row."""

    def log_probs(model: torch.nn.Module) -> torch.Tensor:
        logits = model(**batch, use_cache=False).logits[:, :-1]
        pairs = zip(logits, batch["input_ids"][:, 1:, None], strict=True)
        return torch.stack([row.log_softmax(-1).gather(-1, labels)[:, 0] for row, labels in pairs])

    with torch.inference_mode():
        log_probs(reference)
    actor.zero_grad()
    log_probs(actor)[:, prompt - 1 :].mean().backward()


class Study:
    """A model on disk, actor and reference in this process, and vLLM's engine in another, as verl has them."""

    def __init__(self, clip: Path, processor: HumanOmniProcessor, folder: Path):
        gpu = torch.cuda.is_available()
        self.device, dtype, self.shrink = ("cuda", torch.bfloat16, 1) if gpu else ("cpu", torch.float32, 8)
        self.clip, self.processor = clip, processor
        torch.manual_seed(0)
        config = HumanOmniConfig(**full_size_config(self.shrink, processor))
        self.actor = AutoModelForCausalLM.from_config(config).to(dtype)
        self.actor.save_pretrained(folder)
        processor.save_pretrained(folder)
        self.actor.to(self.device).train()
        self.reference = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(self.device).train()
        self.ids = processor.apply_chat_template(
            messages_about(clip), tokenize=True, return_dict=True, add_generation_prompt=True
        )["input_ids"][0]
        # verl's settings of a rollout; prefix caching is on in both.
        arguments = {"max_num_seqs": 128, "max_num_batched_tokens": 8192, "enable_prefix_caching": True}
        if gpu:
            arguments["gpu_memory_utilization"] = 0.3
        settings = Settings(max_model_len=1792, dtype=str(dtype).removeprefix("torch."))
        own_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        with patch.dict(os.environ, own_process):
            self.llm = start_engine(folder, settings, arguments)

    def roll_out(self, rollouts: int, tokens: int) -> Batch:
        """The rollouts by verl's agent loop and vLLM, as a batch for the trainer."""
        from vllm import SamplingParams

        inputs = asyncio.run(roll_out(self.clip, self.processor, rollouts))
        requests = [
            {
                "prompt_token_ids": list(self.ids),
                "multi_modal_data": {"video": [cache.read_video_once(self.clip, 8)],
                                     "audio": [(cache.read_audio_once(self.clip), 16000)]},
            }
            for _ in range(rollouts)
        ]  # fmt: skip
        sampling = SamplingParams(max_tokens=tokens, temperature=1.0, top_k=50, ignore_eos=True, detokenize=False)
        outputs = self.llm.generate(requests, sampling, use_tqdm=False)
        ids = torch.tensor([[*self.ids, *output.outputs[0].token_ids] for output in outputs])
        media = {name: torch.cat([row[name] for row in inputs]) for name in inputs[0]}
        batch = {**media, "input_ids": ids, "position_ids": torch.arange(ids.shape[1]).expand_as(ids)}
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def generate(self, rollouts: int, tokens: int) -> Batch:
        """The rollouts by transformers, as the original has them."""
        inputs = self.processor.apply_chat_template(
            messages_about(self.clip), tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
        )
        batch = {
            name: tensor.repeat(rollouts, *[1] * (tensor.dim() - 1)).to(self.device) for name, tensor in inputs.items()
        }
        ids = self.actor.generate(
            **batch, do_sample=True, top_k=50, temperature=1.0, max_new_tokens=tokens, min_new_tokens=tokens
        )
        return {**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def forget(self) -> None:
        """As after the last step: its clip is not asked for again, and vLLM has got new weights."""
        for kept in (cache.DECODED, cache.PROCESSED, tower_outputs.TOWER_OUTPUTS):
            kept.clear()
        self.llm.reset_prefix_cache()
        self.llm.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def run(self, way: str, rollouts: int = ROLLOUTS, tokens: int = ANSWER) -> dict[str, float]:
        """One step."""
        self.forget()
        counts: Counter = Counter()
        with plain_or_shared(way != "now"), timed_towers(counts):
            start = time.perf_counter()
            batch = (self.generate if way == "original" else self.roll_out)(rollouts, tokens)
            self.synchronize()
            rolled_out = time.perf_counter()
            if way == "original":
                step_of_trl(self.actor, self.reference, batch, prompt=len(self.ids))
            else:
                step(self.actor, self.reference, batch)
            self.synchronize()
            end = time.perf_counter()
        return {
            "a whole step of a prompt, s": end - start,
            "of which rollouts, s": rolled_out - start,
            "log-prob + reference + update, s": end - rolled_out,
            "of which towers, with the original's rollouts, s": counts["towers"],
            "tower passes a clip and step": counts["encode_audio"],  # of the trainer's models
        }

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def measure_whole_step(clip: Path, processor: HumanOmniProcessor, folder: Path) -> tuple[str, Figures]:
    """The least of some runs of each way, in turns: what else the machine does meets all alike.

    Returns:
        Conditions, and the figures.
    """
    gpu = torch.cuda.is_available()
    results: Figures = {}
    with patch.dict(os.environ, VERL_OMNI_MEDIA_CACHE=str(folder / "media")):
        study = Study(clip, processor, folder / "full_size")
        for way in WAYS:
            study.run(way, rollouts=1, tokens=2)  # warm up
        for _ in range(5 if gpu else 2):
            for way in WAYS:
                for name, value in study.run(way).items():
                    figure = results.setdefault(name, {})
                    figure[way] = min(value, figure.get(way, value))
        study.llm.llm_engine.engine_core.shutdown()
    what = "depths in full, bfloat16" if gpu else f"depths and vocabulary 1/{study.shrink}, float32"
    where = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} CPU threads"
    lengths = f"prompt {len(study.ids)}, answers {ANSWER}"
    return (
        f"a prompt of {ROLLOUTS} rollouts, HumanOmni-0.5B's widths, random weights, {lengths}, {what}, {where}",
        results,
    )
