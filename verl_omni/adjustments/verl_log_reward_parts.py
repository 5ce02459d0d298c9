"""The rewards' parts among verl's training metrics; imports nothing of verl, in whose imports it is loaded."""

from types import ModuleType
from typing import Any

import pandas

from verl_omni.adjustments import replaces
from verl_omni.adjustments.verl_groups_together import has_our_rows


def log_reward_parts(trainer_base: ModuleType) -> None:
    """Add ``reward/<part>/mean`` to verl's training metrics: its v1 trainer logs the parts at validation only."""

    @replaces(trainer_base.PPOTrainer, "_compute_metrics")
    def compute_metrics_with_parts(compute_metrics, trainer: Any, batch: Any, metrics: dict, *args, **kwargs) -> None:
        compute_metrics(trainer, batch, metrics, *args, **kwargs)
        manager, function = trainer.config.reward.reward_manager, trainer.config.reward.custom_reward_function
        our_rewards = manager.name == "accuracy_format" or (function.path or "").startswith("pkg://verl_omni")
        if our_rewards or has_our_rows(trainer):
            rollouts = trainer_base.tq.kv_batch_get(
                keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields"]
            )
            fields = zip(rollouts.pop("extra_fields").tolist(), batch.tags, strict=True)
            real = [field for field, tag in fields if not tag.get("is_padding", False)]
            metrics.update(means_of_parts([field.get("reward_extra_info", {}) for field in real]))


def means_of_parts(extra_infos: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of each numeric part over the rollouts that have it, as ``reward/<part>/mean``."""
    means = pandas.DataFrame(extra_infos).mean(numeric_only=True)
    return {f"reward/{part}/mean": float(mean) for part, mean in means.items()}
