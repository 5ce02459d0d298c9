"""upstream/verl-recipe: its scripts call the shipped recipes with overrides that verl has."""

import os
import re
import subprocess
from pathlib import Path

import pytest

import verl_omni.plugin  # noqa: F401  (registers `+recipe=` with Hydra)
from verl_omni.recipe import composed

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "upstream" / "verl-recipe" / "r1_omni"
TRAINERS = {"verl.trainer.sft_trainer": False, "verl.trainer.main_ppo": True}  # with rollouts?


def commands(script: Path, folder: Path, **environment: str) -> list[list[str]]:
    """The words of each command that a script starts, by programs of those names that print their arguments."""
    for program in ("python3", "torchrun"):
        (folder / program).write_text('#!/bin/bash\nprintf "%s\\t" "$@"\necho\n')
        (folder / program).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "RAVDESS": "r", "CREMA_D": "c"} | environment
    command = ["bash", script, "trainer.total_epochs=7"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [line.rstrip("\t").split("\t") for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["run_cold_start.sh", "run_grpo.sh", "run_open.sh"])
def test_the_overrides_of_a_script_compose_with_its_recipe(script, tmp_path):
    environment = {"TRAIN_FILES": "a.parquet,b.parquet", "VAL_FILES": "c.parquet", "MODEL_PATH": "m", "NGPUS": "2"}
    trainings = [words for words in commands(FOLDER / script, tmp_path, **environment) if set(words) & set(TRAINERS)]
    assert trainings
    for words in trainings:
        ((at, grpo),) = [(words.index(module), grpo) for module, grpo in TRAINERS.items() if module in words]
        recipe, *overrides = words[at + 1 :]
        config = composed(recipe.removeprefix("+recipe="), overrides)
        assert ("actor_rollout_ref" in config) == grpo and config.trainer.n_gpus_per_node == 2
        if script != "run_open.sh":
            assert config.data.train_files == ["a.parquet", "b.parquet"] and config.trainer.total_epochs == 7


def test_each_script_is_in_the_readme_and_its_figures_are_the_demos():
    readme, demo = (FOLDER / "README.md").read_text(), (ROOT / "docs" / "demo.md").read_text()
    assert set(re.findall(r"`(\w+\.sh)`", readme)) == {script.name for script in FOLDER.glob("*.sh")}
    measured = readme.split("## What was measured")[1]
    assert set(re.findall(r"\d+\.\d+", measured)) <= set(re.findall(r"\d+\.\d+", demo))
    assert len(re.findall(r"\d+\.\d+", measured)) == 28
