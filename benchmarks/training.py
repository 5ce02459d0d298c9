"""Time and tower passes of the trainer's models for one prompt's rollouts, at HumanOmni-0.5B's shapes."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from verl_omni.media.cache import enabled
from verl_omni.models.humanomni import shared_towers
from verl_omni.models.humanomni.configuration import HumanOmniConfig
from verl_omni.models.humanomni.towers import HumanOmniTowers

from . import ROLLOUTS, Figures, plain_or_shared


def full_size_config(shrink: int, language_model: bool) -> dict:
    """HumanOmni-0.5B's configuration, depths and vocabulary divided by ``shrink``.

    Args:
        shrink: widths and lengths stay in full.
        language_model: else that of ``build_tiny``.
    """
    language = (
        {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2,
         "num_hidden_layers": 24 // shrink, "vocab_size": 151936 // shrink}
        if language_model
        else {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
              "num_hidden_layers": 2, "vocab_size": 640}
    )  # fmt: skip
    return {
        "vision_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "image_size": 224,
                          "patch_size": 16, "num_hidden_layers": 12 // shrink + (shrink > 1)},
        "audio_config": {"d_model": 1280, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "num_mel_bins": 128,
                         "encoder_layers": 32 // shrink, "decoder_layers": 1},
        "bert_config": {"num_hidden_layers": max(1, 12 // shrink)},
        "video_token_id": 1, "audio_token_id": 2, "tie_word_embeddings": True, "attn_implementation": "sdpa",
        **language,
    }  # fmt: skip


def synthetic_batch(config: HumanOmniConfig, generator: torch.Generator | None = None) -> dict[str, torch.Tensor]:
    """One prompt with a random clip and its rollouts of 128 random tokens."""
    vision, audio = config.vision_config, config.audio_config
    tokens = config.bert_config.max_position_embeddings
    media = {
        "pixel_values": torch.randn(1, config.num_frames, 3, vision.image_size, vision.image_size, generator=generator),
        "input_features": torch.randn(1, audio.num_mel_bins, 2 * audio.max_source_positions, generator=generator),
        "bert_input_ids": torch.randint(5, 100, (1, tokens), generator=generator),
        "bert_attention_mask": torch.arange(tokens)[None] < 40,
    }
    batch = {name: tensor.repeat(ROLLOUTS, *[1] * (tensor.dim() - 1)) for name, tensor in media.items()}
    prompt = torch.cat(
        [torch.full((config.num_video_tokens,), config.video_token_id),
         torch.full((config.num_audio_tokens,), config.audio_token_id)]
    )  # fmt: skip
    answers = torch.randint(5, 100, (ROLLOUTS, 128), generator=generator)
    ids = torch.cat([prompt.expand(ROLLOUTS, -1), answers], dim=1)
    # As verl passes them: without, the prompt would not be shared.
    return {**batch, "input_ids": ids, "position_ids": torch.arange(ids.shape[1]).expand_as(ids)}


def step(actor: torch.nn.Module, reference: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """Log-probabilities, reference and update of one prompt's rollouts in one micro-batch."""
    with torch.no_grad():
        log_probs(actor, batch)
        log_probs(reference, batch)
    actor.zero_grad()
    log_probs(actor, batch)[:, -129:-1].mean().backward()


def log_probs(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """``[B, L]`` of the next tokens: by verl's fused-kernel contract, or as verl does without it, from all logits."""
    if enabled():
        return model(**batch, use_cache=False, temperature=1.0).log_probs
    logits = model(**batch, use_cache=False).logits.float()
    return logits.log_softmax(-1).gather(-1, batch["input_ids"].roll(-1, -1)[..., None])[..., 0]


@contextmanager
def timed_towers(seconds: Counter) -> Iterator[None]:
    """Counts clips, and adds up the time spent in the frozen towers."""

    def timed(name: str) -> Callable:
        encode = getattr(HumanOmniTowers, name)

        def timing(self, inputs):
            start = time.perf_counter()
            outputs = encode(self, inputs)
            if inputs.is_cuda:
                torch.cuda.synchronize()
            seconds["towers"] += time.perf_counter() - start
            seconds[name] += len(inputs)
            return outputs

        return timing

    names = ("encode_video", "encode_audio")
    with patch.multiple(HumanOmniTowers, **{name: timed(name) for name in names}):
        yield


def measure_step(language_model: bool) -> tuple[str, Figures]:
    """Seconds and tower passes for one prompt of 8 rollouts; on a GPU at full depth in bfloat16.

    Args:
        language_model: HumanOmni-0.5B's, or the demo's.

    Returns:
        Conditions, and the figures.
    """

    gpu = torch.cuda.is_available()
    device, dtype, shrink, repeats = ("cuda", torch.bfloat16, 1, 5) if gpu else ("cpu", torch.float32, 8, 1)
    torch.manual_seed(0)
    config = AutoConfig.for_model("HumanOmni_qwen2", **full_size_config(shrink, language_model))
    actor, reference = (AutoModelForCausalLM.from_config(config).to(device, dtype).train() for _ in range(2))
    reference.load_state_dict(actor.state_dict())
    batch = {name: tensor.to(device) for name, tensor in synthetic_batch(config).items()}
    step(actor, reference, {name: tensor[:1] for name, tensor in batch.items()})  # warm up

    results: Figures = {}
    for which in ("plain", "now"):
        times, seconds = [], Counter()
        with plain_or_shared(which == "plain"), timed_towers(seconds):
            for _ in range(repeats):
                shared_towers.TOWER_OUTPUTS.clear()
                start = time.perf_counter()
                step(actor, reference, batch)
                if gpu:
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
        for name, value in (
            ("tower passes a clip and step", seconds["encode_audio"] / repeats),
            ("log-prob + reference + update, s", statistics.median(times)),
            ("of these in the towers, s", seconds["towers"] / repeats),
        ):
            results.setdefault(name, {})[which] = value
    what = "depths in full, bfloat16" if gpu else f"depths 1/{shrink}, float32"
    where = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} CPU threads"
    model = "HumanOmni-0.5B" if language_model else "HumanOmni-0.5B's towers on the demo's language model"
    return f"a prompt of {ROLLOUTS} rollouts, {model}, random weights, widths in full, {what}, {where}", results
