"""HumanOmni in verl 0.9.1: what verl asks of a model that it does not know by name."""

import sys
from types import ModuleType

from transformers import AutoConfig, AutoProcessor

MODEL_TYPE = "HumanOmni_qwen2"


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


def ban_audio_placeholder(utils: ModuleType) -> None:
    """Ban the audio placeholder from sampling, as verl bans those of images and videos.

    Args:
        utils: `verl.workers.rollout.utils`.
    """
    get_vision_placeholder_token_ids = utils.get_vision_placeholder_token_ids

    def get_placeholder_token_ids(processor: object) -> list[int]:
        token_ids = get_vision_placeholder_token_ids(processor)
        audio = utils.get_processor_token_id(processor, "audio")
        return token_ids if audio is None or audio in token_ids else [*token_ids, audio]

    utils.get_vision_placeholder_token_ids = get_placeholder_token_ids


def register_flops(flops_counter: ModuleType) -> None:
    """Register HumanOmni with verl's FLOPs counter (metric `perf/mfu`): its language model is Qwen2.

    The towers are left out, so the figure is a lower bound.

    Args:
        flops_counter: `verl.utils.flops_counter`.
    """
    flops_counter.ESTIMATE_FUNC[MODEL_TYPE] = flops_counter.ESTIMATE_FUNC["qwen2"]
