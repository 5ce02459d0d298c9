"""Qwen2.5-Omni for the trainer: upstream's thinker, unmodified, with its towers and prompts computed once per group."""

from collections.abc import Iterator

import torch
from torch import nn
from transformers import GenerationMixin, Qwen2_5OmniConfig, Qwen2_5OmniThinkerForConditionalGeneration
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniPreTrainedModel

from verl_omni.media.cache import enabled
from verl_omni.models.shared_forward import SharedForward
from verl_omni.models.sharing import decode_shared
from verl_omni.models.tower_outputs import distinct, encode_once, fingerprint, watch_weights


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
        self.train_towers = getattr(config, "train_towers", False)
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

    def get_input_embeddings(self) -> nn.Module:
        return self.thinker.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.thinker.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.thinker.lm_head

    def get_decoder(self) -> nn.Module:
        return self.thinker.model

    def generate(self, *args, **kwargs):
        """Upstream's, of the thinker."""
        return self.thinker.generate(*args, **kwargs)

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        feature_attention_mask: torch.Tensor | None = None,
        temperature: float | None = None,
        shift_labels: torch.LongTensor | None = None,
        video_second_per_grid: torch.Tensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """The thinker's forward, as verl calls it.

        Args:
            input_ids: ``[B, L]`` with placeholders expanded, padded or packed, see ``SharedForward``.
            position_ids: ``[4, B, L]``: through the text, and TMRoPE's three; None for upstream's own, of ``[B, L]``.
            pixel_values_videos: ``[patches, D]`` of all videos, in the order of their placeholders.
            video_grid_thw: ``[V, 3]``, patches of each in time, height and width.
            input_features: ``[A, bins, frames]`` log-mel of all sounds.
            feature_attention_mask: ``[A, frames]``, where there is sound.
            video_second_per_grid: ``[V]``; for upstream's own positions.

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
        media = {
            "pixel_values_videos": pixel_values_videos,
            "video_grid_thw": video_grid_thw,
            "input_features": input_features,
            "feature_attention_mask": feature_attention_mask,
        }
        return self.forward_shared(inputs, media, temperature, shift_labels, **kwargs)

    def forward_plain(self, labels: torch.LongTensor | None = None, **inputs) -> CausalLMOutputWithPast:
        inputs.pop("return_dict", None)
        logits = self.thinker.lm_head(self.hidden_states(**inputs))
        vocabulary = logits.shape[-1]
        loss = None if labels is None else self.loss_function(logits=logits, labels=labels, vocab_size=vocabulary)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        pixel_values_videos: torch.Tensor | None,
        video_grid_thw: torch.Tensor | None,
        input_features: torch.Tensor | None,
        feature_attention_mask: torch.Tensor | None,
        shared_prompts=None,
        **kwargs,
    ) -> torch.Tensor:
        embeddings = self.get_input_embeddings()(input_ids)
        if self.train_towers and self.training:
            # Ranks must agree on which parameters have a gradient, also where one has no sound or no video.
            embeddings = embeddings + 0.0 * sum(p.flatten()[0] for tower in self.towers for p in tower.parameters())
        for token_id, features, name in (
            (self.video_token_id, self.video_features(pixel_values_videos, video_grid_thw), "pixel_values_videos"),
            (self.audio_token_id, self.audio_features(input_features, feature_attention_mask), "input_features"),
        ):
            embeddings = place_features(embeddings, input_ids, token_id, features, name)
        decode = self.thinker.model
        if shared_prompts is not None:
            return decode_shared(decode, embeddings, position_ids, shared_prompts, **kwargs).last_hidden_state
        return decode(
            inputs_embeds=embeddings, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        ).last_hidden_state

    @property
    def video_token_id(self) -> int:
        return self.config.thinker_config.video_token_id

    @property
    def audio_token_id(self) -> int:
        return self.config.thinker_config.audio_token_id

    def video_features(self, patches: torch.Tensor | None, grids: torch.Tensor | None) -> torch.Tensor | None:
        """``[tokens, H]`` of all videos."""
        if patches is None:
            return None
        videos = patches.split(grids.prod(-1).tolist())

        def encode(chosen: list[int]) -> tuple[torch.Tensor, ...]:
            pixels = torch.cat([videos[index] for index in chosen])
            features = self.thinker.get_video_features(pixels, grids[chosen]).pooler_output
            return features.split(self.video_lengths(grids[chosen]))

        return self.encode(self.thinker.visual, encode, video_names(patches, grids))

    def audio_features(self, mels: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor | None:
        """``[tokens, H]`` of all sounds."""
        if mels is None:
            return None

        def encode(chosen: list[int]) -> tuple[torch.Tensor, ...]:
            features = self.thinker.get_audio_features(mels[chosen], mask[chosen]).last_hidden_state
            return features.split(self.audio_lengths(mask[chosen]))

        return self.encode(self.thinker.audio_tower, encode, audio_names(mels, mask))

    def encode(self, tower: nn.Module, encode, names: list) -> torch.Tensor:
        """``encode`` of each distinct clip once; of a frozen tower, also of those met before."""
        if not enabled() or names[0] is None:
            return torch.cat(encode(list(range(len(names)))))
        first, inverse = distinct(names)
        if self.train_towers:
            features = encode(first)
        else:
            clips, device = [names[index] for index in first], next(tower.parameters()).device
            features = encode_once(
                tower, lambda new: encode([first[index] for index in new]), lambda: None, clips, device
            )
        return torch.cat([features[index] for index in inverse])

    def media_items(
        self, input_ids: torch.Tensor, pixel_values_videos, video_grid_thw, input_features, feature_attention_mask
    ) -> Iterator[tuple]:
        """See ``SharedForward``."""
        if pixel_values_videos is not None:
            names = video_names(pixel_values_videos, video_grid_thw)
            yield (
                self.video_token_id,
                ends_of(input_ids, self.video_token_id, self.video_lengths(video_grid_thw)),
                names,
            )
        if input_features is not None:
            names = audio_names(input_features, feature_attention_mask)
            lengths = self.audio_lengths(feature_attention_mask)
            yield self.audio_token_id, ends_of(input_ids, self.audio_token_id, lengths), names

    def video_lengths(self, grids: torch.Tensor) -> list[int]:
        """Tokens of each video."""
        return (grids.prod(-1) // self.thinker.spatial_merge_size**2).tolist()

    def audio_lengths(self, mask: torch.Tensor) -> list[int]:
        """Tokens of each sound."""
        return self.thinker.audio_tower._get_feat_extract_output_lengths(mask.sum(-1))[1].tolist()


def ends_of(input_ids: torch.Tensor, token_id: int, lengths: list[int]) -> torch.Tensor:
    """Where in the flattened batch the last placeholder of each item stands."""
    positions = (input_ids.flatten() == token_id).nonzero().squeeze(1)
    return positions[torch.tensor(lengths).cumsum(0).to(positions.device) - 1]


def place_features(
    embeddings: torch.Tensor, input_ids: torch.Tensor, token_id: int, features: torch.Tensor | None, name: str
) -> torch.Tensor:
    """Put ``features [tokens, H]`` at the placeholders of ``embeddings [B, L, H]``, in order."""
    positions = (input_ids.flatten() == token_id).nonzero().squeeze(1)
    count = 0 if features is None else len(features)
    if len(positions) != count:
        raise ValueError(
            f"{name}: {count} features, and {len(positions)} placeholders (id {token_id}) in input_ids of shape "
            f"{tuple(input_ids.shape)}. The prompt was cut (raise its maximum length), or it and the media come from "
            "different samples"
        )
    if features is None:
        return embeddings
    return embeddings.flatten(0, 1).index_put((positions,), features.to(embeddings.dtype)).view_as(embeddings)


def video_names(patches: torch.Tensor, grids: torch.Tensor) -> list:
    """What tells videos apart; None for tensors without content."""
    if patches.is_meta:
        return [None] * len(grids)
    shapes = grids.tolist()
    return [
        (*shape, fingerprint(video))
        for shape, video in zip(shapes, patches.split(grids.prod(-1).tolist()), strict=True)
    ]


def audio_names(mels: torch.Tensor, mask: torch.Tensor) -> list:
    """What tells sounds apart; None for tensors without content."""
    if mels.is_meta:
        return [None] * len(mels)
    return [(length, fingerprint(mel)) for length, mel in zip(mask.sum(-1).tolist(), mels, strict=True)]
