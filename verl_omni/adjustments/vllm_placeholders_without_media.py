"""vLLM lets a prompt with placeholders but no media pass; the model would answer as if it had seen a clip."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from verl_omni.adjustments import replaces
from verl_omni.models.families import family_of


def reject_placeholders_without_media(input_processor: ModuleType) -> None:
    """Refuse prompts with placeholders but no media at all: for those vLLM does not ask its multimodal processor.

    Such a prompt then raises vLLM's own ``VLLMValidationError``, which its server answers as a client's error.
    """
    from vllm.exceptions import VLLMValidationError  # vLLM 0.24's input_processor does not have the name

    @replaces(input_processor.InputProcessor, "_validate_model_input")
    def validate_model_input(validate, self: Any, prompt_input: Mapping[str, Any], prompt_type: str) -> None:
        validate(self, prompt_input, prompt_type)
        config = self.model_config.hf_config
        if prompt_input["type"] == "token" and (family := family_of(config)):
            found = family.placeholders(config).intersection(prompt_input["prompt_token_ids"])
            if found:
                raise VLLMValidationError(
                    f"The prompt has placeholders (ids {sorted(found)}), but no media were passed with it."
                )
