"""HumanOmni's towers in the trainer: see ``models.tower_outputs``."""

import torch

from verl_omni.media.cache import enabled
from verl_omni.models.tower_outputs import distinct, encode_once, fingerprints, watch_weights

from .configuration import HumanOmniConfig
from .towers import HumanOmniTowers


class SharedTowers(HumanOmniTowers):
    """``HumanOmniTowers`` that work once for all samples of a clip."""

    def init_towers(self, config: HumanOmniConfig) -> None:
        super().init_towers(config)
        for tower in (self.vision_tower, self.audio_tower):
            watch_weights(tower)

    def get_video_features(
        self, pixel_values: torch.Tensor, bert_input_ids: torch.Tensor, bert_attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """See ``HumanOmniTowers``."""
        if not enabled() or pixel_values.is_meta:
            return super().get_video_features(pixel_values, bert_input_ids, bert_attention_mask)
        clips = fingerprints(pixel_values)
        questions = fingerprints(bert_input_ids.masked_fill(bert_attention_mask == 0, -1))
        first, inverse = distinct(list(zip(clips, questions, strict=True)))
        frames, clips = pixel_values[first], [clips[i] for i in first]
        patches = torch.stack(
            encode_once(
                self.vision_tower, lambda new: self.encode_video(frames[new]), self.skip_video, clips, frames.device
            )
        )
        features = self.mm_projector(patches, self.branch_probs(bert_input_ids[first], bert_attention_mask[first]))
        return features[inverse]

    def get_audio_features(self, input_features: torch.Tensor) -> torch.Tensor:
        """See ``HumanOmniTowers``."""
        if not enabled() or input_features.is_meta:
            return super().get_audio_features(input_features)
        clips = fingerprints(input_features)
        first, inverse = distinct(clips)
        mels, clips = input_features[first], [clips[i] for i in first]
        encoded = torch.stack(
            encode_once(self.audio_tower, lambda new: self.encode_audio(mels[new]), self.skip_audio, clips, mels.device)
        )
        return self.project_audio(encoded)[inverse]
