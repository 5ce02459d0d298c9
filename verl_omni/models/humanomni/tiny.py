"""A small random HumanOmni directory, for the demo and the tests: the real classes at toy sizes."""

import json
import string
from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn
from transformers import (
    BertTokenizer,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2Tokenizer,
    WhisperFeatureExtractor,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from verl_omni.labels import LABELS
from verl_omni.prompts import QUESTION, answer_text, instruction

from .configuration import HumanOmniConfig
from .modeling import HumanOmniQwen2ForCausalLM
from .processing import AUDIO_TOKEN, VIDEO_TOKEN, HumanOmniProcessor

# Special tokens: Qwen2's, in its order; the placeholders take the first unused ids, as in a converted checkpoint.
# Sizes: head_dim 32 is the smallest for vLLM on a CPU; Whisper's 100 positions are 2 s.
_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
SIZES = _DATA["config"]
AUDIO_GAIN = 3.0


def build_tiny(out_dir: str | Path, seed: int = 0) -> Path:
    """Write a random HumanOmni of about 1.5 million parameters (float32) to ``out_dir``, which is returned.

    32 video tokens (8 frames, 4x4 patches) and 33 audio tokens (2 s); all recipes run on it within seconds.
    """
    out_dir = Path(out_dir)
    tokenizer, bert_tokenizer = train_tokenizer(corpus()), train_bert_tokenizer(corpus())
    tokenizer.add_tokens([VIDEO_TOKEN, AUDIO_TOKEN], special_tokens=True)
    vision, audio = SIZES["vision_config"], SIZES["audio_config"]
    processor = HumanOmniProcessor(
        image_processor=SiglipImageProcessorPil(size=dict.fromkeys(("height", "width"), vision["image_size"])),
        feature_extractor=WhisperFeatureExtractor(
            feature_size=audio["num_mel_bins"], chunk_length=audio["max_source_positions"] // 50
        ),
        tokenizer=tokenizer,
        bert_tokenizer=bert_tokenizer,
        patch_size=vision["patch_size"],
    )
    config = HumanOmniConfig(
        **SIZES | {"bert_config": SIZES["bert_config"] | {"vocab_size": len(bert_tokenizer)}},
        video_token_id=processor.video_token_id,
        audio_token_id=processor.audio_token_id,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    model = HumanOmniQwen2ForCausalLM(config)
    body = model.model
    spread_weights(body.vision_tower, body.audio_tower, body.mm_projector, body.audio_projector)
    return save(model, processor, out_dir)


@torch.no_grad()
def spread_weights(*parts: nn.Module) -> None:
    """LeCun initialisation of towers and projectors.

    Frozen random towers must carry what they see through to their outputs, which the usual std of 0.02 does not.
    """
    for module in (module for part in parts for module in part.modules()):
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Conv1d):
            # A log-mel is small, and Whisper adds positions to what these make of it, which must not drown it.
            module.weight.mul_(AUDIO_GAIN)


def save(model: PreTrainedModel, processor: ProcessorMixin, out_dir: Path) -> Path:
    """Write a model that ends its answers, and its processor."""
    end, pad = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.generation_config = GenerationConfig(eos_token_id=[end, pad], pad_token_id=pad, bos_token_id=pad)
    model.save_pretrained(out_dir)
    processor.save_pretrained(out_dir)
    return out_dir


def corpus() -> list[str]:
    """The texts the recipes produce: prompts, and answers with every label."""
    labels = sorted({label for names in LABELS.values() for label in names})
    answers = [answer_text(label, thought.format(label=label)) for label in labels for thought in _DATA["thoughts"]]
    prompt = f"system\nYou are a helpful assistant.\nuser\n<vi_start><vi_end>\n<au_start><au_end>\n{instruction()}"
    return [prompt, QUESTION, "assistant\n", *answers] * 4


def train_tokenizer(texts: list[str], special_tokens: Collection[str] = _DATA["special_tokens"]) -> Qwen2Tokenizer:
    """Byte-level BPE with Qwen2's splitting rules; special tokens after the text's, as in Qwen2, and room for two."""
    room = SIZES["vocab_size"] - len(special_tokens) - 2
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(texts, vocab_size=room, show_progress=False)
    tokenizer.add_tokens(list(special_tokens), special_tokens=True)
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def train_bert_tokenizer(texts: list[str]) -> BertTokenizer:
    """Word pieces of ``texts``, and every letter and digit for other questions."""
    letters = string.ascii_lowercase + string.digits
    alphabet = [" ".join(letters), "".join(letter * 2 for letter in letters)]
    tokenizer = BertTokenizer().train_new_from_iterator([*texts, *alphabet], vocab_size=400, show_progress=False)
    tokenizer.model_max_length = SIZES["bert_config"]["max_position_embeddings"]
    return tokenizer
