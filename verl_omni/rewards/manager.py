"""verl's reward manager ``accuracy_format``: R1-Omni's two rewards, and what UAR needs at validation.

    reward.reward_manager.name=accuracy_format
    +reward.reward_kwargs.accuracy_weight=1.0 +reward.reward_kwargs.format_weight=1.0

``reward.reward_kwargs`` is where verl's own managers (``dapo``) read theirs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import NaiveRewardManager, register

from verl_omni.rewards import compute_score, extract_answer


@register("accuracy_format")
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
