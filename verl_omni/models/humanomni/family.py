"""HumanOmni as a family: see ``verl_omni.models.families``."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

from .configuration import HumanOmniConfig
from .modeling import HumanOmniQwen2ForCausalLM
from .processing import HumanOmniProcessor
from .tiny import build_tiny

__all__ = ["build_tiny", "load_model", "load_processor", "owns", "placeholders", "text_config"]

# exist_ok: verl imports its plug-ins in every process, some of them more than once.
AutoConfig.register(HumanOmniConfig.model_type, HumanOmniConfig, exist_ok=True)
AutoModelForCausalLM.register(HumanOmniConfig, HumanOmniQwen2ForCausalLM, exist_ok=True)
AutoProcessor.register(HumanOmniConfig, HumanOmniProcessor, exist_ok=True)

load_processor, load_model = AutoProcessor.from_pretrained, AutoModelForCausalLM.from_pretrained


def owns(inputs: dict) -> bool:
    """Of a video with its question for BERT, or of a sound alone."""
    return "bert_input_ids" in inputs or inputs.keys() == {"input_features"}


def text_config(config: HumanOmniConfig) -> HumanOmniConfig:
    return config


def placeholders(config: HumanOmniConfig) -> set[int]:
    return {config.video_token_id, config.audio_token_id}
