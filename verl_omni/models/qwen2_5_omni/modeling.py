"""Qwen2.5-Omni for the trainer: upstream's thinker, unmodified, with its towers and prompts computed once per group."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import GenerationMixin, Qwen2_5OmniConfig, Qwen2_5OmniThinkerForConditionalGeneration
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniPreTrainedModel

from verl_omni.models.shared_forward import SharedForward
from verl_omni.models.sharing import Media, SharedPrompts, decode_shared
from verl_omni.models.tower_outputs import fingerprints, watch_weights

MEDIA_INPUTS = ("pixel_values_videos", "video_grid_thw", "input_features", "feature_attention_mask")


class Qwen2_5OmniForConditionalGeneration(SharedForward, Qwen2_5OmniPreTrainedModel, GenerationMixin):
    """The thinker of a Qwen2.5-Omni directory, under the name and with the weights' names that the directory has.

    So vLLM takes its weights, and transformers and vLLM its exports. The talker and what makes sound of its output are
    neither loaded nor exported. Towers are frozen, unless the configuration has ``train_towers``.
    """

    config: Qwen2_5OmniConfig
    base_model_prefix = ""
    _keys_to_ignore_on_load_unexpected = (r"^talker\.", r"^token2wav\.")

    def __init__(self, config: Qwen2_5OmniConfig):
        # What is exported, and by which class; verl asks for the latter where the published name says "Model" only.
        config.enable_audio_output, config.architectures = False, [type(self).__name__]
        super().__init__(config)
        self.thinker = Qwen2_5OmniThinkerForConditionalGeneration(config.thinker_config)
        self.train_towers = config.__dict__.pop("train_towers", False)  # a choice of the run, not saved with the model
        for tower in self.towers:
            watch_weights(tower)
        self.post_init()
        # As HumanOmni's: towers are not sharded layer by layer, for ranks call them unequally often.
        self._no_split_modules = ["Qwen2_5OmniDecoderLayer"]

    def train(self, mode: bool = True) -> "Qwen2_5OmniForConditionalGeneration":
        """As transformers'; towers that are not trained stay in evaluation, without gradients."""
        super().train(mode)
        for tower in self.towers:
            tower.requires_grad_(self.train_towers).train(mode and self.train_towers)
        return self

    @property
    def towers(self) -> tuple[nn.Module, nn.Module]:
        return self.thinker.visual, self.thinker.audio_tower

    # Where transformers looks for embeddings and decoder, and for the head; generation is the thinker's, too.
    language_model = property(lambda self: self.thinker.model)
    lm_head = property(lambda self: self.thinker.lm_head)
    generate = property(lambda self: self.thinker.generate)

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        feature_attention_mask: torch.Tensor | None = None,
        video_second_per_grid: torch.Tensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """The thinker's forward, as verl calls it.

        Args:
            input_ids: ``[B, L]`` with placeholders expanded, padded or packed.
            position_ids: ``[4, B, L]``: through the text, and TMRoPE's three; None for upstream's own, of ``[B, L]``.
            pixel_values_videos: ``[patches, D]`` of all videos, in the order of their placeholders.
            video_grid_thw: ``[V, 3]``, patches of each in time, height and width.
            input_features: ``[A, bins, frames]`` log-mel of all sounds.
            feature_attention_mask: ``[A, frames]``, where there is sound.
            video_second_per_grid: ``[V]``; for upstream's own positions.
            **kwargs: as for ``SharedForward.forward_shared``, and ``labels``.

        Raises:
            ValueError: placeholders and media do not match.
        """
        if position_ids is None and attention_mask is not None:
            position_ids, _ = self.thinker.get_rope_index(
                *(input_ids, None, video_grid_thw, attention_mask),
                audio_seqlens=None if feature_attention_mask is None else feature_attention_mask.sum(-1),
                second_per_grids=video_second_per_grid,
            )
            text = (attention_mask.cumsum(-1) - 1).clamp(min=0)
            position_ids = torch.cat([text[None], position_ids])
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        media = (pixel_values_videos, video_grid_thw, input_features, feature_attention_mask)
        return self.forward_shared(inputs, dict(zip(MEDIA_INPUTS, media, strict=True)), **kwargs)

    def forward_plain(self, labels: torch.LongTensor | None = None, **inputs) -> CausalLMOutputWithPast:
        for name in ("return_dict", "inputs_embeds"):  # PEFT passes them all
            inputs.pop(name, None)
        logits = self.thinker.lm_head(self.hidden_states(**inputs))
        loss = None if labels is None else self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        shared_prompts: SharedPrompts | None = None,
        **kwargs,
    ) -> torch.Tensor:
        media = {name: kwargs.pop(name) for name in MEDIA_INPUTS}
        embeddings = self.get_input_embeddings()(input_ids)
        if self.train_towers and self.training:
            # Ranks must agree on which parameters have a gradient, also where one has no sound or no video. What FSDP
            # shards by itself (embeddings that no input reaches) has none on any.
            used = (p for tower in self.towers for p in tower.parameters() if not isinstance(p, DTensor))
            embeddings = embeddings + 0.0 * sum(parameter.flatten()[0] for parameter in used)
        for batch in self.media_of(input_ids, **media):
            embeddings = batch.put_into(embeddings)
        return decode_shared(
            self.thinker.model, embeddings, attention_mask, position_ids, shared_prompts, **kwargs
        ).last_hidden_state

    def media_of(
        self,
        input_ids: torch.Tensor,
        pixel_values_videos: torch.Tensor | None,
        video_grid_thw: torch.Tensor | None,
        input_features: torch.Tensor | None,
        feature_attention_mask: torch.Tensor | None,
    ) -> Iterator[Media]:
        """See ``SharedForward``."""
        thinker, config, ids = self.thinker, self.config.thinker_config, input_ids.flatten()
        places = [(ids == token).nonzero().squeeze(1) for token in (config.video_token_id, config.audio_token_id)]
        frozen = (None, None) if self.train_towers else self.towers
        lengths, names = [], []
        if pixel_values_videos is not None:
            grids, sizes = video_grid_thw, video_grid_thw.prod(-1).tolist()
            videos = pixel_values_videos.split(sizes)
            lengths = [size // thinker.spatial_merge_size**2 for size in sizes]
            names = list(zip(map(tuple, grids.tolist()), fingerprints(pixel_values_videos, sizes), strict=True))

        def see(some: list[int]) -> torch.Tensor:
            return thinker.get_video_features(torch.cat([videos[index] for index in some]), grids[some]).pooler_output

        yield Media("pixel_values_videos", places[0], lengths, names, see, frozen[0])
        lengths, names, mels, mask = [], [], input_features, feature_attention_mask
        if mels is not None:
            lengths = thinker.audio_tower._get_feat_extract_output_lengths(mask.sum(-1))[1].tolist()
            names = list(zip(mask.sum(-1).tolist(), fingerprints(mels), strict=True))

        def hear(some: list[int]) -> torch.Tensor:
            return thinker.get_audio_features(mels[some], mask[some]).last_hidden_state

        yield Media("input_features", places[1], lengths, names, hear, frozen[1])
