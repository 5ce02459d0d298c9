"""HumanOmni for transformers: Qwen2 whose placeholder embeddings are replaced by video and audio features."""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers import Qwen2ForCausalLM, Qwen2Model
from transformers.generation import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from verl_omni.models.shared_forward import SharedForward
from verl_omni.models.sharing import Media, SharedPrompts, decode_shared
from verl_omni.models.tower_outputs import features_once, fingerprints, watch_weights

from .configuration import HumanOmniConfig
from .towers import HumanOmniTowers

MEDIA_INPUTS = ("pixel_values", "bert_input_ids", "bert_attention_mask", "input_features")


def placeholder_positions(input_ids: torch.Tensor, token_id: int, length: int) -> torch.Tensor:
    """Flat positions of the placeholders that stand for media: runs of ``length`` tokens (or several in a row).

    A placeholder that the model sampled itself is no such run; it keeps its own embedding.
    """
    positions = (input_ids.flatten() == token_id).nonzero().squeeze(1)
    run = (positions.diff(prepend=positions[:1]) > 1).cumsum(0)  # [n]: index of each placeholder's run
    return positions[(torch.bincount(run) % length == 0)[run]]


class HumanOmniQwen2Model(HumanOmniTowers, Qwen2Model):
    config: HumanOmniConfig

    def __init__(self, config: HumanOmniConfig):
        super().__init__(config)
        self.init_towers(config)
        for tower in (self.vision_tower, self.audio_tower):
            watch_weights(tower)
        self.post_init()

    # Once for all samples of a clip, see ``models.tower_outputs``.
    def encode_video(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.once(super().encode_video, pixel_values, self.vision_tower, self.skip_video)

    def encode_audio(self, input_features: torch.Tensor) -> torch.Tensor:
        return self.once(super().encode_audio, input_features, self.audio_tower, self.skip_audio)

    def once(self, encode: Callable, items: torch.Tensor, tower: nn.Module, skip: Callable) -> torch.Tensor:
        return torch.stack(features_once(fingerprints(items), lambda some: encode(items[some]), tower, skip))

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        shared_prompts: SharedPrompts | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """See ``HumanOmniQwen2ForCausalLM.forward``."""
        media = {name: kwargs.pop(name, None) for name in MEDIA_INPUTS}
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, **media)
        elif any(values is not None for values in media.values()):
            raise ValueError("pass media with input_ids: inputs_embeds have no placeholders to put features at")
        return decode_shared(super().forward, inputs_embeds, attention_mask, position_ids, shared_prompts, **kwargs)

    def embed(self, input_ids: torch.LongTensor, **media: torch.Tensor | None) -> torch.Tensor:
        """Token embeddings ``[B, L, H]`` with the media's features in place."""
        embeddings = self.embed_tokens(input_ids)
        # See the stand-ins: gradients matter in training, calls wherever ranks compute together.
        stand_in = self.training or torch.distributed.is_initialized()
        for found, zero in zip(self.media_of(input_ids, **media), (self.zero_video, self.zero_audio), strict=True):
            if stand_in and not found.names:
                embeddings = embeddings + zero()
            embeddings = found.put_into(embeddings)
        return embeddings

    def media_of(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None,
        bert_input_ids: torch.Tensor | None,
        bert_attention_mask: torch.Tensor | None,
        input_features: torch.Tensor | None,
    ) -> Iterator[Media]:
        """See ``SharedForward``."""
        config, length, names = self.config, self.config.num_video_tokens, []
        inputs = (pixel_values, bert_input_ids, bert_attention_mask)
        if pixel_values is not None:
            length = length // config.num_frames * pixel_values.shape[1]
            # A question changes what is seen.
            questions = fingerprints(bert_input_ids.masked_fill(bert_attention_mask == 0, -1))
            names = list(zip(fingerprints(pixel_values), questions, strict=True))
        places = placeholder_positions(input_ids, config.video_token_id, length)
        yield Media(
            *("pixel_values", places, [length] * len(names), names),
            lambda some: self.get_video_features(*(values[some] for values in inputs)),
        )
        length, names = config.num_audio_tokens, [] if input_features is None else fingerprints(input_features)
        places = placeholder_positions(input_ids, config.audio_token_id, length)
        yield Media(
            *("input_features", places, [length] * len(names), names),
            lambda some: self.get_audio_features(input_features[some]),
        )


class HumanOmniQwen2ForCausalLM(SharedForward, Qwen2ForCausalLM):
    """HumanOmni with the names of R1-Omni's checkpoints."""

    config: HumanOmniConfig

    def __init__(self, config: HumanOmniConfig):
        super(Qwen2ForCausalLM, self).__init__(config)
        self.model = HumanOmniQwen2Model(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        # post_init adds the towers' layers, which verl would then shard one by one; but ranks call them unequally often
        # (BERT once per question, no tower without its modality), and a call that one rank lacks hangs the others.
        self._no_split_modules = ["Qwen2DecoderLayer"]

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        bert_input_ids: torch.LongTensor | None = None,
        bert_attention_mask: torch.Tensor | None = None,
        input_features: torch.FloatTensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Qwen2's forward with media.

        Args:
            input_ids: ``[B, L]`` with placeholders already expanded to one per feature vector, padded or packed.
            pixel_values: ``[V, T, 3, S, S]``, all videos of the batch in the order of their placeholders.
            bert_input_ids, bert_attention_mask: ``[V, L]``, the question about each video.
            input_features: ``[A, bins, frames]`` log-mel, all sounds in the order of their placeholders.
            **kwargs: as for ``Qwen2ForCausalLM`` (``labels``, ``past_key_values``, ``logits_to_keep``, ...) and
                ``SharedForward.forward_shared``.

        Raises:
            ValueError: placeholders and media do not match.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        media = (pixel_values, bert_input_ids, bert_attention_mask, input_features)
        return self.forward_shared(inputs, dict(zip(MEDIA_INPUTS, media, strict=True)), **kwargs)

    def media_of(self, input_ids: torch.Tensor, **media: torch.Tensor | None) -> Iterator[Media]:
        return self.model.media_of(input_ids, **media)

    forward_plain = Qwen2ForCausalLM.forward  # `model` takes the media

    def hidden_states(self, **inputs) -> torch.Tensor:
        return self.model(**inputs).last_hidden_state

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        if kwargs.get("use_cache", True) and not kwargs.get("is_first_iteration"):  # the media are in the cache
            kwargs = {name: value for name, value in kwargs.items() if name not in MEDIA_INPUTS}
        return super().prepare_inputs_for_generation(input_ids, **kwargs)

    def _get_logits_processor(self, generation_config, input_ids_seq_length=None, **kwargs) -> LogitsProcessorList:
        # The original generates from embeddings, so its repetition penalty sees the new tokens only.
        processors = super()._get_logits_processor(generation_config, input_ids_seq_length, **kwargs)
        for processor in processors:
            if isinstance(processor, RepetitionPenaltyLogitsProcessor):
                processor.prompt_ignore_length = input_ids_seq_length
        return processors
