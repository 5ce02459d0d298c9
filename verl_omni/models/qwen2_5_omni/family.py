"""Qwen2.5-Omni as a family: see ``verl_omni.models.families``."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2_5OmniConfig, Qwen2_5OmniTextConfig

from .modeling import Qwen2_5OmniForConditionalGeneration
from .processing import Qwen2_5OmniProcessor
from .tiny import build_tiny

__all__ = ["build_tiny", "load_model", "load_processor", "owns", "placeholders", "text_config"]

# verl asks for these; upstream leaves them to the configuration's parts.
Qwen2_5OmniConfig.tie_word_embeddings = False
Qwen2_5OmniConfig.max_position_embeddings = property(lambda self: text_config(self).max_position_embeddings)
AutoModelForImageTextToText.register(Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration, exist_ok=True)
load_model = Qwen2_5OmniForConditionalGeneration.from_pretrained


def load_processor(directory: str | Path, **kwargs: Any) -> Qwen2_5OmniProcessor:
    processor = Qwen2_5OmniProcessor.from_pretrained(directory, **kwargs)
    processor.config = AutoConfig.from_pretrained(directory, **kwargs)
    return processor


def owns(inputs: dict) -> bool:
    return "video_second_per_grid" in inputs or "feature_attention_mask" in inputs


def text_config(config: Qwen2_5OmniConfig) -> Qwen2_5OmniTextConfig:
    return config.thinker_config.text_config


def placeholders(config: Qwen2_5OmniConfig) -> set[int]:
    thinker = config.thinker_config
    begins = {thinker.vision_start_token_id, thinker.audio_start_token_id}
    return begins | {thinker.image_token_id, thinker.video_token_id, thinker.audio_token_id}
