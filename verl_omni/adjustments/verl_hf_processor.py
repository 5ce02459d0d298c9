"""verl's ``hf_processor`` returns None for a processor class that it does not list."""

import sys
from functools import cache
from types import ModuleType

from transformers import AutoConfig, AutoProcessor

from verl_omni.models.humanomni.verl_glue import MODEL_TYPE


@cache
def accept_processor(tokenizer: ModuleType) -> None:
    """Let verl's `hf_processor` return HumanOmni's processor; it returns None for all but seven class names.

    Args:
        tokenizer: `verl.utils.tokenizer.tokenizer`.
    """
    hf_processor = tokenizer.hf_processor

    def hf_processor_or_humanomni(name_or_path: str, **kwargs: object) -> object:
        try:
            config = AutoConfig.from_pretrained(name_or_path, **kwargs)
        except (OSError, ValueError):  # a directory without a model (a tokenizer's, say), or a model unknown here
            return hf_processor(name_or_path, **kwargs)
        if config.model_type != MODEL_TYPE:
            return hf_processor(name_or_path, **kwargs)
        processor = AutoProcessor.from_pretrained(name_or_path, **kwargs)
        processor.config = config  # as verl's own function leaves it
        return processor

    # verl imports this module before its plug-ins, so two packages have copied the name by now.
    for module in (tokenizer, sys.modules["verl.utils.tokenizer"], sys.modules["verl.utils"]):
        module.hf_processor = hf_processor_or_humanomni
