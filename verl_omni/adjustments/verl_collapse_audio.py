"""vLLM expands placeholders that are expanded already; verl collapses those of images and videos only."""

from functools import cache, wraps
from types import ModuleType


@cache
def collapse_audio(utils: ModuleType) -> None:
    """Let a processor collapse its prompts for vLLM, if it has ``collapse_placeholders``.

    Args:
        utils: ``verl.workers.rollout.utils``.
    """
    dedup_image_tokens = utils.qwen2_5_vl_dedup_image_tokens

    @wraps(dedup_image_tokens)
    def dedup_tokens(prompt_ids: list[int], processor: object) -> list[int]:
        if hasattr(processor, "collapse_placeholders"):
            return processor.collapse_placeholders(prompt_ids)
        return dedup_image_tokens(prompt_ids, processor)

    utils.qwen2_5_vl_dedup_image_tokens = dedup_tokens
