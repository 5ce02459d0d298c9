"""verl's ``hf_processor`` returns None for a processor class that it does not list."""

import sys
from types import ModuleType

from transformers import AutoConfig

from verl_omni.adjustments import replaces
from verl_omni.models.families import family_of


def accept_processor(tokenizer: ModuleType) -> None:
    """Let it return our families' processors."""

    @replaces(tokenizer, "hf_processor")
    def hf_processor_of_families(hf_processor, name_or_path: str, **kwargs: object) -> object:
        try:
            config = AutoConfig.from_pretrained(name_or_path, **kwargs)
        except (OSError, ValueError):  # a directory without a model (a tokenizer's, say), or a model unknown here
            return hf_processor(name_or_path, **kwargs)
        if (family := family_of(config)) is None:
            return hf_processor(name_or_path, **kwargs)
        processor = family.load_processor(name_or_path, **kwargs)
        processor.config = config  # as verl's own function leaves it
        return processor

    # verl imports this module before its plug-ins, so two packages have copied the name by now.
    for package in ("verl.utils.tokenizer", "verl.utils"):
        sys.modules[package].hf_processor = tokenizer.hf_processor
