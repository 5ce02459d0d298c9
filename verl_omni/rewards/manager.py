"""verl's reward manager ``accuracy_format``: R1-Omni's two rewards, and what UAR needs at validation.

    reward.reward_manager.name=accuracy_format
    +reward.reward_kwargs.accuracy_weight=1.0 +reward.reward_kwargs.format_weight=1.0

``reward.reward_kwargs`` is where verl's own managers (``dapo``) read theirs.
"""

from collections.abc import Callable
from functools import partial, wraps
from types import ModuleType
from typing import Any

from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

from verl_omni.rewards import compute_score, extract_answer


def register(registry: ModuleType) -> None:
    """Add ``accuracy_format`` to ``verl.experimental.reward_loop.reward_manager``."""
    registry.register("accuracy_format")(AccuracyFormatRewardManager)


def log_reward_parts(trainer_base: ModuleType) -> None:
    """Add ``reward/<part>/mean`` to verl's training metrics: its v1 trainer logs the parts at validation only.

    Args:
        trainer_base: ``verl.trainer.ppo.v1.trainer_base``.
    """
    compute_metrics = trainer_base.PPOTrainer._compute_metrics

    @wraps(compute_metrics)
    def compute_metrics_with_parts(self, batch, metrics: dict, *args: Any, **kwargs: Any) -> None:
        compute_metrics(self, batch, metrics, *args, **kwargs)
        fields = trainer_base.tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields"]
        )["extra_fields"].tolist()
        rollouts = [field for field, tag in zip(fields, batch.tags, strict=True) if not tag.get("is_padding", False)]
        metrics.update(means_of_parts([rollout.get("reward_extra_info", {}) for rollout in rollouts]))

    trainer_base.PPOTrainer._compute_metrics = compute_metrics_with_parts


def means_of_parts(extra_infos: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of each numeric part over the rollouts that have it, as ``reward/<part>/mean``."""
    values: dict[str, list[float]] = {}
    for extra_info in extra_infos:
        for part, value in extra_info.items():
            if isinstance(value, int | float):
                values.setdefault(f"reward/{part}/mean", []).append(float(value))
    return {name: sum(parts) / len(parts) for name, parts in values.items()}


class AccuracyFormatRewardManager(NaiveRewardManager):
    """Score a completion with ``verl_omni.rewards.compute_score``.

    Raises:
        ValueError: a custom reward function is configured too: the manager would have to ignore one of them.
        TypeError: ``reward.reward_kwargs`` holds anything but the two weights.
    """

    def __init__(
        self,
        config: DictConfig,
        tokenizer: PreTrainedTokenizerBase,
        compute_score: Callable | None,
        **reward_model: Any,
    ):
        function = config.reward.custom_reward_function.path
        if function:
            raise ValueError(
                f"reward.custom_reward_function.path={function} and reward.reward_manager.name=accuracy_format: "
                "both score completions; keep one (reward.reward_manager.name=naive calls the function)"
            )
        super().__init__(config, tokenizer, self._weighted(**config.reward.get("reward_kwargs", {})), **reward_model)

    @staticmethod
    def _weighted(accuracy_weight: float = 1.0, format_weight: float = 1.0) -> Callable[..., dict]:
        return partial(compute_score, accuracy_weight=accuracy_weight, format_weight=format_weight)

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Return ``reward_score`` and ``reward_extra_info``, whose numbers verl averages at validation.

        Besides ``compute_score``'s values there is ``recall/<label>`` in rows of that label alone: verl's mean over the
        rows that have it is the class' recall (UAR is not a mean over rows, but the mean of these figures).
        """
        result = await super().run_single(data)
        label = extract_answer(data[-1:][0].non_tensor_batch["reward_model"]["ground_truth"])
        extra = result["reward_extra_info"]
        extra[f"recall/{label}"] = extra["accuracy"]
        return result
