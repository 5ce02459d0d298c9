"""Supervised fine-tuning by verl's ``sft_trainer`` on a CPU, of both families; on two ranks: test_grpo.py."""

import json
import sys
from pathlib import Path

import pytest
from documents import documented
from test_grpo import run
from test_qwen2_5_omni_grpo import STREAM, changed_weights

from verl_omni.corpora.demo import build_demo
from verl_omni.models.families import load

pytestmark = pytest.mark.slow

FOUR_CLIPS = ("trainer.total_epochs=1", "data.train_batch_size=4", "data.micro_batch_size_per_gpu=4")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    build_demo(folder / "data", n_train=4, n_test=4, n_sft=4)
    return folder


def fine_tuned(study: Path, family: str, command: list[str]) -> tuple[Path, Path, set[str]]:
    """A tiny model, what became of it, and the weights that changed."""
    base, checkpoints = load(family).build_tiny(study / family), study / f"{family}_sft"
    overrides = [f"model.path={base}", f"data.train_files=[{study / 'data/sft.parquet'}]"]
    run(study, family, [*command, *overrides, f"trainer.default_local_dir={checkpoints}", *FOUR_CLIPS])
    (exported,) = checkpoints.glob("global_step_*/huggingface")
    return base, exported, changed_weights(base, exported)


def test_fine_tuning_trains_all_but_towers_and_bert(study):
    _, _, changed = fine_tuned(study, "humanomni", documented("sft_trainer +recipe=recipes/emer_sft_cpu.yaml"))
    trained = {"embed_tokens", "layers", "norm", "mm_projector", "audio_projector", "bert_gate"}
    assert {name.removeprefix("model.").split(".")[0] for name in changed} == trained


def test_fine_tuning_trains_the_towers_where_it_is_told_to(study):
    command = [sys.executable, "-m", "verl.trainer.sft_trainer", "+recipe=emer_sft_qwen2_5_omni_cpu"]
    command += [STREAM, "+model.override_config.train_towers=true"]
    base, exported, changed = fine_tuned(study, "qwen2_5_omni", command)
    parts = {".".join(name.split(".")[:2]) for name in changed}
    assert parts == {"thinker.model", "thinker.lm_head", "thinker.visual", "thinker.audio_tower"}
    config, trained = (json.loads((path / "config.json").read_text()) for path in (base, exported))
    assert trained["architectures"] == config["architectures"], "what vLLM loads it by"
