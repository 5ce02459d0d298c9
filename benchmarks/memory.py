"""Host memory: its growth over many clips and many steps, and the peak of a run."""

import os
from pathlib import Path
from threading import Event, Thread

import psutil
import torch
from transformers import AutoModelForCausalLM

from verl_omni.media import cache
from verl_omni.models.humanomni.processing import HumanOmniProcessor

from . import Figures, plain_or_shared
from .training import step, synthetic_batch


def measure_decodes(clip: Path, processor: HumanOmniProcessor, decodes: int = 1000, warm_up: int = 300) -> Figures:
    """Growth of this process' resident memory over ``decodes`` of changed files, after the cache has filled.

    Each is of the video and of the sound, and both are processed.
    """
    process, results = psutil.Process(), {}
    for which in ("plain", "now"):
        with plain_or_shared(which == "plain"):
            for number in range(decodes + warm_up):
                if number == warm_up:
                    before = process.memory_info().rss
                os.utime(clip, ns=(number, number))  # for the cache another file
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
            for number in range(steps + 50):
                if number == 50:
                    before = process.memory_info().rss
                step(actor, reference, synthetic_batch(actor.config, generator))
                optimizer.step()
            results[which] = (process.memory_info().rss - before) / 2**20
    return {f"memory over {steps} training steps, MiB": results}


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
