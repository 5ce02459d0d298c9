"""What a recipe does before a trainer starts: callbacks of Hydra that end a run which cannot work, at once."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE
from hydra import compose, initialize_config_module
from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from verl_omni.checkpoints import restore_tracker
from verl_omni.recipe_source import RecipeError, resolve, shipped

__all__ = ["CheckPaths", "CheckSettings", "RecipeError", "composed", "resolve", "run_start_checks", "shipped"]

INPUTS = ("model.path", "actor_rollout_ref.model.path", "data.train_files", "data.val_files")
# key -> value that cannot work with this model, and why.
FSDP1 = ("fsdp", "FSDP1 flattens the frozen towers and the trained layers into one parameter; take fsdp2")
REFUSED = {
    "actor_rollout_ref.actor.strategy": FSDP1,
    "engine.strategy": FSDP1,
    "skip.rollout_tq.enable": (
        True,
        "the dumped rollouts refer to clips that are gone by then; VERL_OMNI_SHARING=0 in the environment dumps all",
    ),
}


class CheckPaths(Callback):
    """Hydra callback that ends the command before Ray starts if a model or rows file is not there.

    It also restores the file in which verl looks for the last checkpoint, should a kill have left it empty. A model may
    be in the hub's cache, too; a path with a scheme (``hdfs://``) is verl's to fetch. ``remedy`` says how to get them.
    """

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy

    def on_run_start(self, config: DictConfig, **_: object) -> None:
        restore_tracker(config.trainer.default_local_dir)

    def on_job_start(self, config: DictConfig, **_: object) -> None:
        missing = [f"{key}: {path}" for key in INPUTS for path in _paths(config, key) if not Path(path).exists()]
        if missing:  # Hydra turns any other exception of a callback into a warning
            found, remedy = f"not there, seen from {os.getcwd()}:", f"{self.remedy}; or name others: KEY=PATH"
            raise SystemExit("\n".join([found, *missing, remedy]))


def _paths(config: DictConfig, key: str) -> list[str]:
    value = OmegaConf.select(config, key)
    paths = [value] if isinstance(value, str) else list(value or [])
    if key.endswith("model.path"):
        paths = [path for path in paths if not (Path(HF_HUB_CACHE) / f"models--{path.replace('/', '--')}").is_dir()]
    return [os.path.expanduser(path) for path in paths if "://" not in path]


class CheckSettings(Callback):
    """Hydra callback that ends the command before Ray starts if verl has a setting that this model cannot run with."""

    def on_job_start(self, config: DictConfig, **_: object) -> None:
        from verl_omni.media.cache import enabled  # not for each Hydra command: it loads the decoders

        wrong = [
            f"{key}={refused}: {why}"
            for key, (refused, why) in REFUSED.items()
            if OmegaConf.select(config, key) == refused and (enabled() or key != "skip.rollout_tq.enable")
        ]
        if wrong := [*wrong, *_uneven(config)]:
            raise SystemExit("\n".join(["settings that cannot work:", *wrong]))


def _uneven(config: DictConfig) -> Iterator[str]:
    """Micro-batches that do not divide what a rank has: verl would say so after the first rollouts, without numbers."""
    if "actor_rollout_ref" not in config:
        return
    parts, batch = config.actor_rollout_ref, config.data.train_batch_size
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    for key, prompts, by_tokens in (
        ("actor.ppo_micro_batch_size_per_gpu", parts.actor.ppo_mini_batch_size, parts.actor.use_dynamic_bsz),
        ("ref.log_prob_micro_batch_size_per_gpu", batch, parts.ref.log_prob_use_dynamic_bsz),
        ("rollout.log_prob_micro_batch_size_per_gpu", batch, parts.rollout.log_prob_use_dynamic_bsz),
    ):
        size, rows = OmegaConf.select(parts, key), prompts * parts.rollout.n / ranks
        if size and not by_tokens and rows % size:
            yield (
                f"actor_rollout_ref.{key}={size}: it must divide the {rows:g} rows that a rank of {ranks} has of "
                f"{prompts} prompts with {parts.rollout.n} rollouts"
            )


def composed(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """What ``main_ppo``, if the recipe has rollouts, else ``sft_trainer`` gets from ``+recipe=name`` and overrides.

    Hydra's own part is in it, for ``run_start_checks``. What cannot be composed raises ``HydraException``.
    """
    with initialize_config_module("verl.trainer.config", version_base=None):
        grpo = "actor_rollout_ref" in compose("sft_trainer_engine", [f"+recipe={name}"])
        trainer = "ppo_trainer" if grpo else "sft_trainer_engine"
        return compose(trainer, [f"+recipe={name}", *overrides], return_hydra_config=True)


def run_start_checks(config: DictConfig) -> None:
    """Run the recipe's callbacks as Hydra does before a trainer's start; ``SystemExit`` says what is wrong."""
    for callback in config.hydra.callbacks.values():
        instantiate(callback).on_job_start(config=config)
