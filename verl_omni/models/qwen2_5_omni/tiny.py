"""A small random Qwen2.5-Omni directory, for the demo and the tests: upstream's classes at toy sizes."""

import json
from pathlib import Path

import torch
from transformers import Qwen2_5OmniConfig, Qwen2Tokenizer, WhisperFeatureExtractor
from transformers.models.qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from verl_omni.models.humanomni.tiny import corpus, save, spread_weights, train_tokenizer

from .modeling import Qwen2_5OmniForConditionalGeneration
from .processing import Qwen2_5OmniProcessor

_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
VOCAB_SIZE, NUM_FRAMES, SIDE, SECONDS = 640, 4, 56, 2


def build_tiny(out_dir: str | Path, seed: int = 0) -> Path:
    """Write a random Qwen2.5-Omni of about a million parameters (float32) to ``out_dir``, which is returned.

    8 video tokens (4 frames of 56 x 56 pixels) and 50 of two seconds of sound. Only the thinker has weights.
    """
    out_dir = Path(out_dir)
    tokenizer = train_tokenizer(corpus(), VOCAB_SIZE, _DATA["special_tokens"].values())
    tokenizer = with_named_tokens(tokenizer, out_dir)
    size = {"shortest_edge": SIDE**2, "longest_edge": SIDE**2}
    processor = Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessorPil(size=size),
        # Frames have their size; upstream's processor would bring them to its own least, not to the directory's.
        video_processor=Qwen2VLVideoProcessor(size=size, num_frames=NUM_FRAMES, do_resize=False),
        feature_extractor=WhisperFeatureExtractor(feature_size=128, chunk_length=SECONDS),
        tokenizer=tokenizer,
        chat_template=_DATA["chat_template"],
    )
    torch.manual_seed(seed)
    model = Qwen2_5OmniForConditionalGeneration(tiny_config(tokenizer))
    spread_weights(model.towers, model.thinker.audio_tower)
    return save(model, processor, out_dir)


def with_named_tokens(tokenizer: Qwen2Tokenizer, folder: Path) -> Qwen2Tokenizer:
    """The tokenizer with attributes for the family's tokens (``audio_bos_token``, ...), as the published one has."""
    tokenizer.save_pretrained(folder)
    named = {name: token for name, token in _DATA["special_tokens"].items() if name.endswith("_token")}
    return Qwen2Tokenizer.from_pretrained(folder, extra_special_tokens=named)


def tiny_config(tokenizer: Qwen2Tokenizer) -> Qwen2_5OmniConfig:
    """Head sizes of 32, the smallest for vLLM on a CPU (``tiny.json``)."""
    tokens = _DATA["special_tokens"]
    ids = {key: tokenizer.convert_tokens_to_ids(tokens[name]) for key, name in _DATA["token_ids"].items()}
    thinker = _DATA["thinker_config"] | ids
    thinker["text_config"] = thinker["text_config"] | {"vocab_size": VOCAB_SIZE}
    thinker["audio_config"] = thinker["audio_config"] | {"max_source_positions": SECONDS * 50}
    return Qwen2_5OmniConfig(thinker_config=thinker, enable_audio_output=False, dtype="float32")
