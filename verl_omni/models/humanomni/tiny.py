"""A small random HumanOmni directory, for the demo and the tests: the real classes at toy sizes."""

import json
import string
from collections.abc import Collection, Sequence
from copy import deepcopy
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

_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
# Qwen2's special tokens, in its order; the placeholders take the first unused ids, as in a converted checkpoint.
SPECIAL_TOKENS: list[str] = _DATA["special_tokens"]
THOUGHTS: list[str] = _DATA["thoughts"]
AUDIO_GAIN = 3.0
VOCAB_SIZE, BERT_LENGTH, IMAGE_SIZE, PATCH_SIZE, MEL_BINS, SECONDS = 640, 128, 32, 8, 80, 2


def build_tiny(out_dir: str | Path, seed: int = 0) -> Path:
    """Write a random HumanOmni of about 1.5 million parameters (float32) to ``out_dir``, which is returned.

    32 video tokens (8 frames, 4x4 patches) and 33 audio tokens (2 s); all recipes run on it within seconds.

    Example::

        model = AutoModelForCausalLM.from_pretrained(build_tiny("tiny"))
    """
    out_dir = Path(out_dir)
    tokenizer, bert_tokenizer = train_tokenizer(corpus()), train_bert_tokenizer(corpus())
    tokenizer.add_tokens([VIDEO_TOKEN, AUDIO_TOKEN], special_tokens=True)
    processor = HumanOmniProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        feature_extractor=WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=SECONDS),
        tokenizer=tokenizer,
        bert_tokenizer=bert_tokenizer,
        patch_size=PATCH_SIZE,
    )
    torch.manual_seed(seed)
    model = HumanOmniQwen2ForCausalLM(tiny_config(processor))
    body = model.model
    parts = (body.vision_tower, body.audio_tower, body.mm_projector, body.audio_projector)
    spread_weights(parts, body.audio_tower.encoder)
    return save(model, processor, out_dir)


def tiny_config(processor: HumanOmniProcessor) -> HumanOmniConfig:
    """The configuration that fits ``processor``; head_dim 32, the smallest for vLLM on a CPU (``tiny.json``)."""
    tokenizer = processor.tokenizer
    sizes = deepcopy(_DATA["config"])
    sizes["vision_config"] |= {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
    sizes["audio_config"] |= {"num_mel_bins": MEL_BINS, "max_source_positions": SECONDS * 50}
    sizes["bert_config"] |= {"vocab_size": len(processor.bert_tokenizer), "max_position_embeddings": BERT_LENGTH}
    return HumanOmniConfig(
        **sizes,
        vocab_size=VOCAB_SIZE,
        video_token_id=processor.video_token_id,
        audio_token_id=processor.audio_token_id,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


@torch.no_grad()
def spread_weights(parts: Sequence[nn.Module], hearing: nn.Module) -> None:
    """LeCun initialisation of what is before a language model.

    Frozen random towers must carry what they see through to their outputs, which the usual std of 0.02 does not.

    Args:
        parts: towers and projectors.
        hearing: Whisper's encoder among them.
    """
    for module in (module for part in parts for module in part.modules()):
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    # A log-mel is small, and Whisper adds positions to what its convolutions make of it: they must not drown it.
    for convolution in (hearing.conv1, hearing.conv2):
        convolution.weight.mul_(AUDIO_GAIN)


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
    answers = [answer_text(label, thought.format(label=label)) for label in labels for thought in THOUGHTS]
    prompt = f"system\nYou are a helpful assistant.\nuser\n<vi_start><vi_end>\n<au_start><au_end>\n{instruction()}"
    return [prompt, QUESTION, "assistant\n", *answers] * 4


def train_tokenizer(
    texts: list[str], vocab_size: int = VOCAB_SIZE, special_tokens: Collection[str] = SPECIAL_TOKENS
) -> Qwen2Tokenizer:
    """Byte-level BPE with Qwen2's splitting rules; special tokens after the text's, as in Qwen2, and room for two."""
    room = vocab_size - len(special_tokens) - 2
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(texts, vocab_size=room, show_progress=False)
    tokenizer.add_tokens(list(special_tokens), special_tokens=True)
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def train_bert_tokenizer(texts: list[str]) -> BertTokenizer:
    """Word pieces of ``texts``, and every letter and digit for other questions."""
    letters = string.ascii_lowercase + string.digits
    alphabet = [" ".join(letters), "".join(letter * 2 for letter in letters)]
    tokenizer = BertTokenizer().train_new_from_iterator([*texts, *alphabet], vocab_size=400, show_progress=False)
    tokenizer.model_max_length = BERT_LENGTH
    return tokenizer
