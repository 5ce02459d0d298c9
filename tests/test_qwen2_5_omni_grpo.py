"""GRPO of Qwen2.5-Omni through verl's ``main_ppo`` on a CPU: real Ray, FSDP2, vLLM and clips. Minutes, not seconds."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_grpo import GRPO, SMALL, answer_with_vllm, run, train

from verl_omni.models.families import load

pytestmark = pytest.mark.slow

QWEN_GRPO = [*GRPO[:-1], "+recipe=r1omni_qwen2_5_omni_cpu"]


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
MODEL = "actor_rollout_ref.model."
LORA = [MODEL + option for option in ("lora_rank=8", "exclude_modules='.*(visual|audio_tower).*'", "lora.merge=true")]
PARTS = {"thinker.model.layers", "thinker.lm_head", "thinker.visual", "thinker.audio_tower"}


@pytest.mark.parametrize(
    ("name", "options", "trained"),
    [
        ("lora", [*LORA, STREAM], {"thinker.model.layers"}),
        ("towers", [f"+{MODEL}override_config.train_towers=true"], PARTS),
    ],
)
def test_what_is_trained_reaches_the_rollouts_and_the_export(study, name, options, trained):
    """At this learning rate, the first step's weights no longer have the second one's probabilities."""
    overrides = [*options, "actor_rollout_ref.actor.optim.lr=0.02", "trainer.total_training_steps=2"]
    steps = train(study, name, QWEN_GRPO, *SMALL, *overrides, "trainer.save_freq=2")
    assert sorted(steps) == [1, 2]
    for step in steps.values():
        assert step["training/rollout_actor_probs_pearson_corr"] >= 0.999
        assert step["actor/grad_norm"] > 0
        assert step["global_seqlen/groups"] == step["global_seqlen/groups_computed"] == 4
    exported = study / name / "global_step_2" / "actor" / "huggingface"
    changed = changed_weights(study / "base", exported)
    assert {part for part in PARTS for weight in changed if weight.startswith(part)} == trained
    if name == "towers":
        answer_with_vllm(exported, study)


def test_fine_tuning_trains_the_thinker_alone(study):
    command = [
        *(sys.executable, "-m", "verl.trainer.sft_trainer", "+recipe=emer_sft_qwen2_5_omni_cpu"),
        *(f"model.path={study / 'base'}", f"data.train_files=[{study / 'data/sft.parquet'}]", "trainer.total_epochs=1"),
        *(
            "data.train_batch_size=4",
            "data.micro_batch_size_per_gpu=4",
            STREAM,
            f"trainer.default_local_dir={study / 'sft'}",
        ),
    ]
    run(study, "sft", command)
    changed = changed_weights(study / "base", study / "sft" / "global_step_3" / "huggingface")
    assert any(name.startswith("thinker.model.layers") for name in changed)
    assert not any("visual" in name or "audio_tower" in name for name in changed)
