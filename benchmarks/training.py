"""The passes of the trainer's models over one prompt's rollouts, at HumanOmni-0.5B's shapes."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from verl_omni.media.cache import enabled
from verl_omni.models.humanomni.configuration import HumanOmniConfig
from verl_omni.models.humanomni.processing import HumanOmniProcessor
from verl_omni.models.humanomni.towers import HumanOmniTowers

from . import ROLLOUTS

Batch = dict[str, torch.Tensor]
VOCABULARY = 151936  # of HumanOmni-0.5B


def full_size_config(shrink: int, processor: HumanOmniProcessor, vocabulary: int | None = None) -> dict:
    """HumanOmni-0.5B's configuration, depths and vocabulary divided by ``shrink``.

    Args:
        shrink: widths and lengths stay in full.
        processor: whose placeholders the model gets.
        vocabulary: another one.
    """
    return {
        "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2,
        "num_hidden_layers": 24 // shrink, "vocab_size": vocabulary or VOCABULARY // shrink,
        "vision_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "image_size": 224,
                          "patch_size": 16, "num_hidden_layers": 12 // shrink + (shrink > 1)},
        "audio_config": {"d_model": 1280, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "num_mel_bins": 128,
                         "encoder_layers": 32 // shrink, "decoder_layers": 1},
        "bert_config": {"num_hidden_layers": max(1, 12 // shrink)},
        "video_token_id": processor.video_token_id, "audio_token_id": processor.audio_token_id,
        "tie_word_embeddings": True, "attn_implementation": "sdpa",
    }  # fmt: skip


def synthetic_batch(
    config: HumanOmniConfig, generator: torch.Generator | None = None, rollouts: int = ROLLOUTS
) -> Batch:
    """One prompt with a random clip and its rollouts of 128 random tokens."""
    vision, audio = config.vision_config, config.audio_config
    tokens = config.bert_config.max_position_embeddings
    media = {
        "pixel_values": torch.randn(1, config.num_frames, 3, vision.image_size, vision.image_size, generator=generator),
        "input_features": torch.randn(1, audio.num_mel_bins, 2 * audio.max_source_positions, generator=generator),
        "bert_input_ids": torch.randint(5, 100, (1, tokens), generator=generator),
        "bert_attention_mask": torch.arange(tokens)[None] < 40,
    }
    batch = {name: tensor.repeat(rollouts, *[1] * (tensor.dim() - 1)) for name, tensor in media.items()}
    prompt = torch.cat(
        [torch.full((config.num_video_tokens,), config.video_token_id),
         torch.full((config.num_audio_tokens,), config.audio_token_id)]
    )  # fmt: skip
    answers = torch.randint(5, 100, (rollouts, 128), generator=generator)
    ids = torch.cat([prompt.expand(rollouts, -1), answers], dim=1)
    # As verl passes them: without, the prompt would not be shared.
    return {**batch, "input_ids": ids, "position_ids": torch.arange(ids.shape[1]).expand_as(ids)}


def step(actor: torch.nn.Module, reference: torch.nn.Module, batch: Batch) -> None:
    """Log-probabilities, reference and update of one prompt's rollouts in one micro-batch."""
    with torch.no_grad():
        log_probs(actor, batch)
        log_probs(reference, batch)
    actor.zero_grad()
    log_probs(actor, batch)[:, -129:-1].mean().backward()


def log_probs(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """``[B, L]`` of the next tokens: by verl's fused-kernel contract, or as verl does without it, from all logits."""
    if enabled():
        return model(**batch, use_cache=False, temperature=1.0).log_probs
    from verl.utils.torch_functional import logprobs_from_logits

    return logprobs_from_logits(model(**batch, use_cache=False).logits, batch["input_ids"].roll(-1, -1))


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
