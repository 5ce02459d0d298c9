"""vLLM expands placeholders that are expanded already; verl collapses those of images and videos only."""

from types import ModuleType

from verl_omni.adjustments import replaces


def collapse_audio(utils: ModuleType) -> None:
    """Let a processor collapse its prompts for vLLM, if it has ``collapse_placeholders``."""

    @replaces(utils, "qwen2_5_vl_dedup_image_tokens")
    def dedup_tokens(dedup_image_tokens, prompt_ids: list[int], processor: object) -> list[int]:
        if hasattr(processor, "collapse_placeholders"):
            return processor.collapse_placeholders(prompt_ids)
        return dedup_image_tokens(prompt_ids, processor)
