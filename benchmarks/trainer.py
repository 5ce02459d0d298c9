"""verl's trainer on the demo, by its own timings."""

import json
import statistics
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from verl_omni.corpora.demo import build_demo
from verl_omni.platforms.cpu import is_cpu_only
from verl_omni.study.stages import execute, last_step

from . import Figures
from .memory import PeakMemory

GRPO_FIGURES = {  # verl's metric -> figure
    "timing_s/step": "a GRPO step, s",
    "timing_s/gen": "of which rollouts, s",
    "timing_s/old_log_prob": "of which log-prob, s",
    "timing_s/ref": "of which reference, s",
    "timing_s/update_actor": "of which update, s",
    "perf/throughput": "tokens a second",
}
PLAIN = ("trainer.v1.sampler.custom_sampler={path:null,name:null}",)  # verl's own, which asks every two seconds


def without_flash_attention(model: str = "actor_rollout_ref.model") -> list[str]:
    """Overrides for a GPU on which flash-attn is not installed."""
    if find_spec("flash_attn"):
        return []
    return [f"+{model}.override_config.attn_implementation=sdpa", f"{model}.use_remove_padding=false"]


def measure_grpo(folder: Path, model: Path, steps: int = 5) -> Figures:
    """The demo's GRPO, by verl's own timings: medians over its steps but the first two, and peak host memory.

    Args:
        folder: gets the demo corpus and the logs.
        model: the demo's untrained one; its answers have the greatest length.
        steps: of 128 rollouts each.
    """

    data, cpu = build_demo(folder / "data"), is_cpu_only()
    recipe, gpu = ("r1omni_cpu", ()) if cpu else ("r1omni", ("trainer.n_gpus_per_node=1", *without_flash_attention()))
    results: Figures = {}
    for which in ("plain", "now"):
        metrics = folder / f"{which}.jsonl"
        metrics.touch()
        command = [
            *("-m", "verl.trainer.main_ppo", f"+recipe={recipe}", f"actor_rollout_ref.model.path={model}"),
            *(f"data.train_files=[{data['train']}]", f"data.val_files=[{data['test']}]"),
            *("trainer.test_freq=-1", "trainer.save_freq=-1", "trainer.val_before_train=false"),
            *(f"trainer.total_training_steps={steps}", f"trainer.default_local_dir={folder / which}"),
            *gpu,
            *(PLAIN if which == "plain" and cpu else ()),
        ]
        environment = {
            "VERL_FILE_LOGGER_PATH": str(metrics),
            "VERL_OMNI_SHARING": "0" if which == "plain" else "1",
            "VERL_OMNI_MEDIA_CACHE": str(folder / "media"),
        }
        memory = PeakMemory()
        memory.start()
        done = partial(last_step, metrics)
        execute(f"{steps} GRPO steps, {which}", command, folder / f"{which}.log", environment, done)
        peak = memory.stop()
        records = [json.loads(line)["data"] for line in metrics.read_text().splitlines()][2:]
        for metric, name in GRPO_FIGURES.items():
            results.setdefault(name, {})[which] = statistics.median(record[metric] for record in records)
        results.setdefault("peak host memory of the run, GB", {})[which] = peak
    return results
