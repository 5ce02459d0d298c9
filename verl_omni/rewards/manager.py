"""verl's reward manager ``accuracy_format``: R1-Omni's two rewards, further terms, and what UAR needs at validation.

    reward.reward_manager.name=accuracy_format
    +reward.reward_kwargs={accuracy: 1, format: 1, explanation: 0.5}      (without it: the first two)

``reward.reward_kwargs`` is where verl's own managers (``dapo``) read theirs. ``verl_omni.rewards.TERMS`` has the terms.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import NaiveRewardManager, register

from verl_omni import rewards
from verl_omni.data.row import content_items
from verl_omni.rewards import extract_answer, read_terms

SENSE_OF_MEDIA = {"video": "sight", "audio": "sound"}


@register("accuracy_format")
class AccuracyFormatRewardManager(NaiveRewardManager):
    """Score a completion with ``verl_omni.rewards.compute_score`` and the terms of ``reward.reward_kwargs``.

    Raises:
        ValueError: another reward function is configured too (where verl serves a reward model it asks for one, and
            ``pkg://verl_omni.rewards`` is this); or that reward model is to share the trainer's GPUs.
        TypeError: ``reward.reward_kwargs`` holds something that is no reward term.
    """

    def __init__(
        self,
        config: DictConfig,
        tokenizer: PreTrainedTokenizerBase,
        compute_score: Callable | None,
        **reward_model: Any,
    ):
        function = config.reward.custom_reward_function.path
        if function and function != "pkg://verl_omni.rewards":
            raise ValueError(
                f"reward.custom_reward_function.path={function} and reward.reward_manager.name=accuracy_format: "
                "both score completions; keep one (reward.reward_manager.name=naive calls the function)"
            )
        if config.reward.reward_model.enable and not config.reward.reward_model.enable_resource_pool:
            raise ValueError(
                "reward.reward_model.enable=true: on the trainer's GPUs verl hands a reward model no labels; set "
                "reward.reward_model.enable_resource_pool=true, and its n_gpus_per_node and nnodes"
            )
        given = config.reward.get("reward_kwargs") or OmegaConf.create()
        terms = cast(dict[str, Any], OmegaConf.to_container(given, resolve=True))
        read_terms(terms)
        super().__init__(config, tokenizer, partial(rewards.compute_score, **terms), **reward_model)

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Return ``reward_score`` and ``reward_extra_info``, whose numbers verl averages at validation.

        Besides ``compute_score``'s values there is ``recall/<label>`` in rows of that label alone: verl's mean over the
        rows that have it is the class' recall (UAR is not a mean over rows, but the mean of these figures); and
        ``media``, the files of video and sound, for who reads the answers that verl dumps.
        """
        row = data[-1:][0].non_tensor_batch
        if "raw_prompt" in row:
            items = [item for item in content_items(row["raw_prompt"]) if item["type"] in SENSE_OF_MEDIA]
            row["extra_info"]["senses"] = [SENSE_OF_MEDIA[item["type"]] for item in items]
        result = await super().run_single(data)
        label = extract_answer(row["reward_model"]["ground_truth"])
        extra = result["reward_extra_info"]
        extra[f"recall/{label}"] = extra["accuracy"]
        if "raw_prompt" in row:
            extra["media"] = " ".join(dict.fromkeys(str(item[item["type"]]) for item in items))
        return result
