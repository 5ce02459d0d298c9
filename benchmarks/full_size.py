"""HumanOmni-0.5B at full size with random weights, a corpus of 720p, and how much of a device a training uses."""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from transformers import BertTokenizer, Qwen2Tokenizer, WhisperFeatureExtractor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from verl_omni.corpora import demo
from verl_omni.media.write import write_clip
from verl_omni.models.humanomni import tiny
from verl_omni.models.humanomni.configuration import HumanOmniConfig
from verl_omni.models.humanomni.modeling import HumanOmniQwen2ForCausalLM
from verl_omni.models.humanomni.processing import AUDIO_TOKEN, VIDEO_TOKEN, HumanOmniProcessor

from .training import VOCABULARY, full_size_config

WIDTH, HEIGHT, REPEATS = 1280, 720, 3  # of the demo's 8 frames a second, which become 24


def full_size_processor() -> HumanOmniProcessor:
    """HumanOmni-0.5B's media, 392 + 500 tokens; the demo's small tokenizers, the language model's filled up.

    verl has vLLM sample the tokenizer's tokens alone: of fewer, rollouts would be far likelier than to the actor. What
    fills it is in no merge, so text has the same tokens; added tokens would take each process 4 s to load.
    """
    small: Qwen2Tokenizer = tiny.train_tokenizer(tiny.corpus())
    bpe = json.loads(small.backend_tokenizer.to_str())["model"]
    added = [token for token in small.get_added_vocab() if token not in bpe["vocab"]] + [VIDEO_TOKEN, AUDIO_TOKEN]
    filling = {f"<|{index}|>": index for index in range(len(bpe["vocab"]), VOCABULARY - len(added))}
    tokenizer = Qwen2Tokenizer(bpe["vocab"] | filling, [tuple(pair) for pair in bpe["merges"]], eos_token="<|im_end|>")
    tokenizer.add_tokens(added, special_tokens=True)
    bert_tokenizer: BertTokenizer = tiny.train_bert_tokenizer(tiny.corpus())
    bert_tokenizer.model_max_length = 512
    return HumanOmniProcessor(
        SiglipImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3), WhisperFeatureExtractor(feature_size=128),
        tokenizer, bert_tokenizer,
    )  # fmt: skip


def config_of(processor: HumanOmniProcessor) -> HumanOmniConfig:
    special = {f"{name}_token_id": getattr(processor.tokenizer, f"{name}_token_id") for name in ("pad", "eos")}
    sizes = full_size_config(1, processor)
    del sizes["attn_implementation"]
    return HumanOmniConfig(**sizes | special, architectures=["HumanOmniQwen2ForCausalLM"])


def build_full_size(out: Path, seed: int = 0) -> Path:
    """Write the model (bfloat16, 2.6 GB) to ``out``, which is returned."""
    processor = full_size_processor()
    torch.manual_seed(seed)
    model = HumanOmniQwen2ForCausalLM(config_of(processor))
    body = model.model
    tiny.spread_weights(body.vision_tower, body.audio_tower, body.mm_projector, body.audio_projector)
    return tiny.save(model.to(torch.bfloat16), processor, out)


def build_720p(out: Path, **sizes: int) -> dict[str, Path]:
    """The demo corpus, its clips enlarged."""

    def enlarged(path: Path, frames: Iterable[np.ndarray], wave: np.ndarray, fps: int, rate: int, **x264: str) -> Path:
        resized = (np.asarray(Image.fromarray(frame).resize((WIDTH, HEIGHT))) for frame in frames)
        large = (frame for frame in resized for _ in range(REPEATS))
        return write_clip(path, large, wave, REPEATS * fps, rate, **{"preset": "ultrafast", **x264})

    with patch.object(demo, "write_clip", enlarged):
        return demo.build_demo(out, **sizes)


def mfu(config: HumanOmniConfig, lengths: Sequence[int], seconds: float, peak: float) -> float:
    """Model FLOPs utilisation of a training pass, 0 to 1, by verl's count for the language model; towers left out.

    Args:
        lengths: tokens of each sequence, the prompt included, also where it is computed once for several.
        seconds: forward and backward.
        peak: the device's FLOP/s.
    """
    from verl.utils.flops_counter import ESTIMATE_FUNC

    teraflops = ESTIMATE_FUNC["qwen2"](config, sum(lengths), list(lengths), seconds)
    return teraflops * 1e12 / peak


def describe_device() -> dict:
    """The device's name and memory, and what it does in a large matrix product: the peak that MFU refers to."""
    gpu = torch.cuda.is_available()
    device, dtype, size = ("cuda", torch.bfloat16, 8192) if gpu else ("cpu", torch.float32, 2048)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(5 if gpu else 1):
            a @ b
        if gpu:
            torch.cuda.synchronize()
        best = max(best, (5 if gpu else 1) * 2 * size**3 / (time.perf_counter() - start))
    name = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30 if gpu else 0.0
    return {"device": name, "memory_gib": memory, "peak_flops": best, "precision": str(dtype).removeprefix("torch.")}


if __name__ == "__main__":
    print(json.dumps(describe_device()))
