"""Memory: its growth over many clips and many steps, the peak of an update, and that of a run."""

import os
import re
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread

import psutil
import torch
from transformers import AutoModelForCausalLM, AutoProcessor

from verl_omni.media import cache
from verl_omni.models.humanomni.configuration import HumanOmniConfig
from verl_omni.models.humanomni.processing import HumanOmniProcessor

from . import ROLLOUTS, Figures, plain_or_shared
from .training import VOCABULARY, full_size_config, log_probs, step, synthetic_batch


def measure_decodes(clip: Path, processor: HumanOmniProcessor, decodes: int = 1000, warm_up: int = 300) -> Figures:
    """Growth of this process' resident memory over ``decodes`` of changed files, after the cache has filled.

    Each is of the video and of the sound, and both are processed.
    """
    process, results = psutil.Process(), {}
    for which in ("plain", "now"):
        with plain_or_shared(which == "plain"):
            for number in range(-(warm_up if which == "now" else 50), decodes):  # plain has no cache to fill
                if number == 0:
                    before = process.memory_info().rss
                os.utime(clip, ns=(10**9 + number,) * 2)  # for the cache another file
                processor.process_frames(cache.read_video_once(clip, 8))
                processor.process_wave(cache.read_audio_once(clip), 16000)
            results[which] = (process.memory_info().rss - before) / 2**20
    return {f"memory over {decodes} decodes, MiB": results}


def measure_training(model: Path, steps: int = 500) -> Figures:
    """Growth of resident memory over training steps with a new clip each, after 50 of them."""
    process, results = psutil.Process(), {}
    for which in ("plain", "now"):
        actor, reference = (AutoModelForCausalLM.from_pretrained(model).train() for _ in range(2))
        optimizer = torch.optim.AdamW(p for p in actor.parameters() if p.requires_grad)
        generator = torch.Generator().manual_seed(0)
        with plain_or_shared(which == "plain"):
            for number in range(-50, steps):
                if number == 0:
                    before = process.memory_info().rss
                step(actor, reference, synthetic_batch(actor.config, generator))
                optimizer.step()
            results[which] = (process.memory_info().rss - before) / 2**20
    return {f"memory over {steps} training steps, MiB": results}


def measure_update(processor_of: Path, rollouts: int | None = None) -> tuple[str, Figures]:
    """Peak memory of a process that updates the actor by one prompt's rollouts, at 0.5B's widths and vocabulary.

    Args:
        processor_of: a model's folder.
        rollouts: of the prompt; default: as many as ``plain`` has memory for here.

    Returns:
        Conditions, and the figures.
    """
    gpu = torch.cuda.is_available()
    if rollouts is None:  # plain holds all logits three to four times
        free = (torch.cuda.mem_get_info()[0] if gpu else psutil.virtual_memory().available) - 6e9
        rollouts = min(ROLLOUTS, max(1, int(free / (4 * 1020 * VOCABULARY * 4))))
    results: Figures = {}
    for which in ("plain", "now"):
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", str(processor_of), str(rollouts)],
            env={**os.environ, "VERL_OMNI_SHARING": "0" if which == "plain" else "1"},
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        before, peak = map(float, child.stdout.split())
        results.setdefault("peak memory of a process that updates, GB", {})[which] = peak
        results.setdefault("peak memory of an update above weights and AdamW, GB", {})[which] = peak - before
    how = "in full, bfloat16, allocated" if gpu else "1/8, float32, resident"
    return (
        f"update by {rollouts} rollouts of 1,020 tokens, 0.5B's widths, vocabulary {VOCABULARY:,}, depths {how}",
        results,
    )


def update(processor_of: Path, rollouts: int) -> None:
    """Print GB in use before a second update, when AdamW has its moments, and at its peak."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # what lacks memory for this measurement is not another program
    gpu = torch.cuda.is_available()
    config = full_size_config(1 if gpu else 8, AutoProcessor.from_pretrained(processor_of), VOCABULARY)
    model = AutoModelForCausalLM.from_config(HumanOmniConfig(**config))
    model = (model.to("cuda", torch.bfloat16) if gpu else model).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # as the GPU recipe
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-6)
    for rows in (1, rollouts):
        batch = {name: tensor.to(model.device) for name, tensor in synthetic_batch(model.config, rollouts=rows).items()}
        optimizer.zero_grad()
        torch.cuda.reset_peak_memory_stats() if gpu else Path("/proc/self/clear_refs").write_text("5")
        before = torch.cuda.memory_allocated() if gpu else resident("VmRSS")
        log_probs(model, batch)[:, -129:-1].mean().backward()
        optimizer.step()
        peak = torch.cuda.max_memory_allocated() if gpu else resident("VmHWM")
    print(before / 1e9, peak / 1e9)


def resident(name: str) -> int:
    """Bytes of this process' ``VmRSS``, or ``VmHWM``, its peak."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


class PeakMemory(Thread):
    """The most memory this machine had in use while the thread ran, in GB above what it had at the start."""

    def __init__(self):
        super().__init__(daemon=True)
        self.start_bytes = self.peak_bytes = psutil.virtual_memory().available
        self.stopped = Event()

    def run(self) -> None:
        while not self.stopped.wait(0.5):
            self.peak_bytes = min(self.peak_bytes, psutil.virtual_memory().available)

    def stop(self) -> float:
        self.stopped.set()
        self.join()
        return (self.start_bytes - self.peak_bytes) / 1e9


if __name__ == "__main__":
    update(Path(sys.argv[1]), int(sys.argv[2]))
