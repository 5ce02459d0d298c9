"""verl's ``hf_processor`` returns None for a processor class that it does not list."""

import sys
from functools import cache
from types import ModuleType

from transformers import AutoConfig

from verl_omni.models.families import family_of


@cache
def accept_processor(tokenizer: ModuleType) -> None:
    """Let verl's ``hf_processor`` return our families' processors; it returns None for all but seven class names.

    Args:
        tokenizer: ``verl.utils.tokenizer.tokenizer``.
    """
    hf_processor = tokenizer.hf_processor

    def hf_processor_of_families(name_or_path: str, **kwargs: object) -> object:
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
    for module in (tokenizer, sys.modules["verl.utils.tokenizer"], sys.modules["verl.utils"]):
        module.hf_processor = hf_processor_of_families
