"""GRPO of Qwen2.5-Omni through verl's ``main_ppo`` on a CPU: real Ray, FSDP2, vLLM and clips. Minutes, not seconds."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_grpo import SMALL, metrics_of, run

from verl_omni.models.families import load

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A small demo corpus and a tiny model."""
    from verl_omni.corpora.demo import build_demo

    folder = tmp_path_factory.mktemp("study")
    build_demo(folder / "data", n_train=32, n_test=4, n_sft=4)
    load("qwen2_5_omni").build_tiny(folder / "base")
    return folder


def changed_weights(before: Path, after: Path) -> set[str]:
    old, new = (load_file(path / "model.safetensors") for path in (before, after))
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name].to(old[name].dtype))}


STREAM = "+data.mm_processor_kwargs.use_audio_in_video=true"
LORA = ("model.lora_rank=8", "model.exclude_modules='.*(visual|audio_tower).*'", "model.lora.merge=true")


def test_adapters_of_bfloat16_reach_the_rollouts_and_the_export(study):
    """Clips are one stream here, and the recipe has its other precision.

    That runs here and nowhere else: slow, on a CPU that has no instructions for it.
    """
    overrides = [*(f"actor_rollout_ref.{option}" for option in LORA), STREAM]
    overrides += ["actor_rollout_ref.rollout.dtype=bfloat16", "actor_rollout_ref.actor.optim.lr=0.02"]
    overrides += ["trainer.total_training_steps=2", "trainer.save_freq=2"]
    overrides += [
        f"actor_rollout_ref.model.path={study / 'base'}",
        f"data.train_files=[{study / 'data/train.parquet'}]",
    ]
    overrides += [f"data.val_files=[{study / 'data/test.parquet'}]", f"trainer.default_local_dir={study / 'lora'}"]
    grpo = [sys.executable, "-m", "verl.trainer.main_ppo", "+recipe=r1omni_qwen2_5_omni_cpu"]
    run(study, "lora", [*grpo, *SMALL, *overrides])
    steps = metrics_of(study, "lora")
    assert sorted(steps) == [1, 2]
    for step in steps.values():
        # At this learning rate, the first step's weights no longer have the second one's probabilities.
        assert step["training/rollout_actor_probs_pearson_corr"] >= 0.98
        assert step["actor/grad_norm"] > 0
        assert step["global_seqlen/groups"] == step["global_seqlen/groups_computed"] == 4
    exported = study / "lora" / "global_step_2" / "actor" / "huggingface"
    adapted = changed_weights(study / "base", exported)
    assert adapted and all(name.startswith("thinker.model.layers.") and "proj" in name for name in adapted)
