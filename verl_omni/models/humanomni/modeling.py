"""HumanOmni for transformers: Qwen2 whose placeholder embeddings are replaced by video and audio features."""

from collections.abc import Iterator

import torch
from torch import nn
from transformers import Qwen2ForCausalLM, Qwen2Model
from transformers.generation import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from verl_omni.models.shared_forward import SharedForward
from verl_omni.models.sharing import SharedPrompts, decode_shared
from verl_omni.models.tower_outputs import fingerprints

from .configuration import HumanOmniConfig
from .shared_towers import SharedTowers

MEDIA_INPUTS = ("pixel_values", "bert_input_ids", "bert_attention_mask", "input_features")


def placeholder_positions(input_ids: torch.Tensor, token_id: int, length: int) -> torch.Tensor:
    """Flat positions of the placeholders that stand for media: runs of ``length`` tokens (or several in a row).

    A placeholder that the model sampled itself is no such run; it keeps its own embedding.
    """
    positions = (input_ids.flatten() == token_id).nonzero().squeeze(1)
    run = (positions.diff(prepend=positions[:1]) > 1).cumsum(0)  # [n]: index of each placeholder's run
    return positions[(torch.bincount(run) % length == 0)[run]]


def place_features(
    embeddings: torch.Tensor,
    input_ids: torch.Tensor,
    token_id: int,
    features: torch.Tensor | None,
    length: int,
    name: str,
) -> torch.Tensor:
    """Put ``features [M, length, H]`` at the placeholders of ``embeddings [B, L, H]``, in order.

    Raises:
        ValueError: the prompts' placeholders and the features do not match.
    """
    positions = placeholder_positions(input_ids, token_id, length)
    count = 0 if features is None else features.shape[0] * length
    if len(positions) != count:
        raise ValueError(
            f"{name}: {count} features but {len(positions)} placeholders (id {token_id}) in runs of {length}, out of "
            f"{int((input_ids == token_id).sum())} in input_ids of shape {tuple(input_ids.shape)}. The prompt was cut "
            "(raise its maximum length), or it and the media come from different samples"
        )
    if features is None:
        return embeddings
    values = features.flatten(0, 1).to(embeddings.dtype)
    return embeddings.flatten(0, 1).index_put((positions,), values).view_as(embeddings)


class HumanOmniQwen2Model(SharedTowers, Qwen2Model):
    config: HumanOmniConfig

    def __init__(self, config: HumanOmniConfig):
        super().__init__(config)
        self.init_towers(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        bert_input_ids: torch.LongTensor | None = None,
        bert_attention_mask: torch.Tensor | None = None,
        input_features: torch.FloatTensor | None = None,
        shared_prompts: SharedPrompts | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """See :meth:``HumanOmniQwen2ForCausalLM.forward``."""
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, pixel_values, bert_input_ids, bert_attention_mask, input_features)
        elif pixel_values is not None or input_features is not None:
            raise ValueError("pass media with input_ids: inputs_embeds have no placeholders to put features at")
        if shared_prompts is not None:
            return decode_shared(super().forward, inputs_embeds, position_ids, shared_prompts, **kwargs)
        return super().forward(
            attention_mask=attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds, **kwargs
        )

    def embed(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.FloatTensor | None = None,
        bert_input_ids: torch.LongTensor | None = None,
        bert_attention_mask: torch.Tensor | None = None,
        input_features: torch.FloatTensor | None = None,
    ) -> torch.Tensor:
        """Token embeddings ``[B, L, H]`` with the media's features in place."""
        embeddings = self.embed_tokens(input_ids)
        # See the stand-ins: gradients matter in training, calls wherever ranks compute together.
        config, stand_in = self.config, self.training or torch.distributed.is_initialized()
        video = audio = None
        if pixel_values is not None:
            video = self.get_video_features(pixel_values, bert_input_ids, bert_attention_mask)
        elif stand_in:
            embeddings = embeddings + self.zero_video()
        if input_features is not None:
            audio = self.get_audio_features(input_features)
        elif stand_in:
            embeddings = embeddings + self.zero_audio()
        for name, token_id, features, length in (
            ("pixel_values", config.video_token_id, video, config.num_video_tokens),
            ("input_features", config.audio_token_id, audio, config.num_audio_tokens),
        ):
            length = length if features is None else features.shape[1]
            embeddings = place_features(embeddings, input_ids, token_id, features, length, name)
        return embeddings

    def media_items(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None,
        bert_input_ids: torch.Tensor | None,
        bert_attention_mask: torch.Tensor | None,
        input_features: torch.Tensor | None,
    ) -> Iterator[tuple[int, torch.Tensor, list]]:
        """See ``SharedForward``."""
        if pixel_values is not None:
            length = self.tokens_of(pixel_values)
            # A question changes what is seen.
            questions = fingerprints(bert_input_ids.masked_fill(bert_attention_mask == 0, -1))
            names = list(zip(fingerprints(pixel_values), questions, strict=True))
            token_id = self.config.video_token_id
            yield token_id, placeholder_positions(input_ids, token_id, length)[length - 1 :: length], names
        if input_features is not None:
            token_id, length = self.config.audio_token_id, self.config.num_audio_tokens
            last = placeholder_positions(input_ids, token_id, length)[length - 1 :: length]
            yield token_id, last, fingerprints(input_features)

    def tokens_of(self, pixel_values: torch.Tensor) -> int:
        """Tokens of each video of ``[V, T, 3, S, S]``."""
        return self.config.num_video_tokens // self.config.num_frames * pixel_values.shape[1]


class HumanOmniQwen2ForCausalLM(SharedForward, Qwen2ForCausalLM):
    """HumanOmni with the names of R1-Omni's checkpoints.

    Example::

        import verl_omni.models
        model = AutoModelForCausalLM.from_pretrained(directory)
        inputs = AutoProcessor.from_pretrained(directory).apply_chat_template(messages, tokenize=True, ...)
        model.generate(**inputs, max_new_tokens=512)
    """

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
        temperature: float | None = None,
        shift_labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Qwen2's forward with media.

        Args:
            input_ids: ``[B, L]`` with placeholders already expanded to one per feature vector; padded (with
                ``attention_mask``), or packed into ``[1, total]`` (no mask, ``position_ids`` that restart).
            pixel_values: ``[V, T, 3, S, S]``, all videos of the batch in the order of their placeholders.
            bert_input_ids, bert_attention_mask: ``[V, L]``, the question about each video.
            input_features: ``[A, bins, frames]`` log-mel, all sounds in the order of their placeholders.
            temperature: return ``log_probs`` and ``entropy`` in place of logits (verl's ``use_fused_kernels``).
            shift_labels: ``[B, L]`` next tokens of which; default ``input_ids``, shifted.
            **kwargs: as for ``Qwen2ForCausalLM`` (``labels``, ``past_key_values``, ``logits_to_keep``, ...). With
                ``use_cache=False`` and ``position_ids``, as verl calls it, prompts that sequences share are computed
                once; what then stands at padding, which nobody reads, is not the plain forward's.

        Raises:
            ValueError: placeholders and media do not match.
        """
        media = {
            "pixel_values": pixel_values,
            "bert_input_ids": bert_input_ids,
            "bert_attention_mask": bert_attention_mask,
            "input_features": input_features,
        }
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        return self.forward_shared(inputs, media, temperature, shift_labels, **kwargs)

    def media_items(self, input_ids: torch.Tensor, **media: torch.Tensor | None) -> Iterator[tuple]:
        return self.model.media_items(input_ids, **media)

    def forward_plain(self, **inputs) -> CausalLMOutputWithPast:
        return super().forward(**inputs)

    def hidden_states(self, **inputs) -> torch.Tensor:
        return self.model(**inputs).last_hidden_state

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration=False, use_cache=True, **kwargs):
        inputs = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, use_cache=use_cache, **kwargs
        )
        if use_cache and not is_first_iteration:  # the media are in the cache
            for name in MEDIA_INPUTS:
                inputs.pop(name, None)
        return inputs

    def _get_logits_processor(self, generation_config, input_ids_seq_length=None, **kwargs) -> LogitsProcessorList:
        # The original generates from embeddings, so its repetition penalty sees the new tokens only.
        processors = super()._get_logits_processor(generation_config, input_ids_seq_length, **kwargs)
        for processor in processors:
            if isinstance(processor, RepetitionPenaltyLogitsProcessor):
                processor.prompt_ignore_length = input_ids_seq_length
        return processors
