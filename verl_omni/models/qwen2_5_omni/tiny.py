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

# Head sizes of 32 are the smallest for vLLM on a CPU; the tower's 100 positions are 2 s.
_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
NUM_FRAMES, SIDE, SECONDS = 4, 56, 2


def build_tiny(out_dir: str | Path, seed: int = 0) -> Path:
    """Write a random Qwen2.5-Omni of about a million parameters (float32) to ``out_dir``, which is returned.

    8 video tokens (4 frames of 56 x 56 pixels) and 50 of two seconds of sound. Only the thinker has weights.
    """
    out_dir = Path(out_dir)
    # With attributes for the family's tokens (``audio_bos_token``, ...), as the published one has.
    train_tokenizer(corpus(), _DATA["special_tokens"].values()).save_pretrained(out_dir)
    named = {name: token for name, token in _DATA["special_tokens"].items() if name.endswith("_token")}
    tokenizer = Qwen2Tokenizer.from_pretrained(out_dir, extra_special_tokens=named)
    size = {"shortest_edge": SIDE**2, "longest_edge": SIDE**2}
    processor = Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessorPil(size=size),
        # Frames have their size; upstream's processor would bring them to its own least, not to the directory's.
        video_processor=Qwen2VLVideoProcessor(size=size, num_frames=NUM_FRAMES, do_resize=False),
        feature_extractor=WhisperFeatureExtractor(feature_size=128, chunk_length=SECONDS),
        tokenizer=tokenizer,
        chat_template=_DATA["chat_template"],
    )
    ids = {key: getattr(tokenizer, f"{name}_id") for key, name in _DATA["token_ids"].items()}
    # verl samples no token that the tokenizer lacks, but its actor's probabilities are of the whole vocabulary.
    text = _DATA["thinker_config"]["text_config"] | {"vocab_size": len(tokenizer)}
    thinker = _DATA["thinker_config"] | {"text_config": text} | ids
    config = Qwen2_5OmniConfig(thinker_config=thinker, enable_audio_output=False, dtype="float32")
    torch.manual_seed(seed)
    model = Qwen2_5OmniForConditionalGeneration(config)
    spread_weights(*model.towers)
    return save(model, processor, out_dir)
