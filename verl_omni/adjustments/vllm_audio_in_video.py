"""vLLM's positions of Qwen2.5-Omni's video and sound as one stream are not those of transformers.

It counts the stream's tokens from ``<|audio_bos|>`` on, which has the position of ``<|vision_bos|>``.
"""

import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from verl_omni.adjustments import replaces
from verl_omni.plugin import RUN


def place_streams_as_transformers(qwen2_5_omni_thinker: ModuleType) -> None:
    """Ask transformers for the positions of a prompt with a stream; an answer goes on behind its last token.

    In processes of this package's runs and commands alone (``RUN``).
    """

    @replaces(qwen2_5_omni_thinker.Qwen2_5OmniThinkerForConditionalGeneration, "get_mrope_input_positions")
    def get_positions_of_streams(
        get_positions, self: Any, input_tokens: list[int], mm_features: Sequence[Any]
    ) -> tuple[torch.Tensor, int]:
        streams = [data for _, _, data in self.iter_mm_features(mm_features) if data.get("use_audio_in_video")]
        if RUN not in os.environ or not streams:
            return get_positions(self, input_tokens, mm_features)
        from verl_omni.models.qwen2_5_omni.processing import rope_index

        vision = self.config.vision_config
        merge, rate = vision.spatial_merge_size, getattr(vision, "tokens_per_second", 25)  # vLLM's default
        grids = [(data["grid_t"], merge * data["grid_h"], merge * data["grid_w"]) for data in streams]
        positions, _ = rope_index(
            self.config,
            torch.tensor([input_tokens]),
            video_grid_thw=torch.tensor(grids),
            audio_seqlens=torch.tensor([data["audio_feature_length"] for data in streams]),
            second_per_grids=torch.tensor([data["t_factor"] / rate for data in streams]),
        )
        positions = positions[:, 0]
        return positions, int(positions[0, -1]) + 1 - len(input_tokens)
