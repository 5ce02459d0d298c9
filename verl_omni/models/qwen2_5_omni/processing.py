"""Upstream's processor of Qwen2.5-Omni, with what this package's datasets and verl ask a processor for."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import torch
from transformers import BatchFeature, Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration
from transformers.models.qwen2_5_omni import processing_qwen2_5_omni as upstream

from verl_omni.media.resize import FrameFormat
from verl_omni.models.chat import ChatMedia

# Of a directory that says nothing else, as the published ones: what fits a clip of a few seconds at the 2 frames a
# second of upstream's own tools, and up to 13 x 13 tokens for two frames: upstream's processor takes no less than 128.
NUM_FRAMES, SIDE = 8, 364


class Qwen2_5OmniProcessor(ChatMedia, upstream.Qwen2_5OmniProcessor):
    """Upstream's in all it makes of media and text; under its name, which a saved directory carries.

    Media come as the dataset reads them: frames in ``frame_format()``, which upstream's processor resizes no more.
    Positions are spaced for upstream's default of 2 frames a second. Video and sound are two items, or with
    ``use_audio_in_video`` one stream of both by turns.
    """

    call_options = (*ChatMedia.call_options, "use_audio_in_video")

    num_frames = property(lambda self: self.video_processor.num_frames or NUM_FRAMES)
    patch_size = property(lambda self: self.video_processor.patch_size)

    def frame_format(self, aspect_ratio: str | None = None) -> FrameFormat:
        """Frames in their own ratio, as upstream has them; ``pad`` or ``squash`` make squares of them."""
        config = self.video_processor
        multiple = config.patch_size * config.merge_size
        side = min(SIDE, int(config.size["longest_edge"] ** 0.5) // multiple * multiple)
        colour = tuple(int(mean * 255) for mean in config.image_mean) if aspect_ratio == "pad" else None
        return FrameFormat((side, side), int(config.resample), colour, None if aspect_ratio else multiple)

    def __call__(
        self,
        text: str | list[str] | None = None,
        images: None = None,
        videos: Sequence[np.ndarray] | None = None,
        audio: Sequence[np.ndarray] | None = None,
        video_metadata: Sequence[dict | None] | None = None,
        aspect_ratio: str | None = None,
        use_audio_in_video: bool = False,
        **kwargs,
    ) -> BatchFeature:
        """Upstream's, see there.

        Args:
            text: prompts with one placeholder per video and sound, or none at all, as verl has it after generation.
            videos: each uint8 ``[T, H, W, 3]``.
            audio: mono float waves ``[samples]`` at 16 kHz.
            video_metadata, aspect_ratio: what other families need, and ``frame_format`` knew.
            use_audio_in_video: of each video and its sound, one stream; the sounds' own placeholders are left out.

        Raises:
            ValueError: a stream of a video without sound, or of a sound without video.
        """
        if use_audio_in_video and len(videos or ()) != len(audio or ()):
            raise ValueError("use_audio_in_video: each video needs its sound, and each sound its video")
        texts = [text] if isinstance(text, str) else list(text or [""])
        if use_audio_in_video:
            texts = list(map(self.one_stream, texts))
        kwargs["use_audio_in_video"] = use_audio_in_video
        return super().__call__(text=texts, images=images, videos=videos, audio=audio, **kwargs)

    def one_stream(self, text: str) -> str:
        """A prompt whose videos' placeholders stand for their sound as well, as upstream has it in such streams."""
        return text.replace(self.audio_bos_token + self.audio_token + self.audio_eos_token, "")

    def get_rope_index(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **media: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """TMRoPE's positions ``[3, B, L]`` of prompts and answers ``[B, L]``.

        Args:
            media: ``video_grid_thw``, and what ``get_rope_index_kwargs`` adds.
        """
        return rope_index(self.config.thinker_config, input_ids, attention_mask, **media)

    def get_rope_index_kwargs(self, multi_modal_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What TMRoPE depends on besides ids and grids: the sounds' lengths, and the time between grids."""
        mask, seconds = (multi_modal_inputs.get(key) for key in ("feature_attention_mask", "video_second_per_grid"))
        sounds = {} if mask is None else {"audio_seqlens": mask.sum(-1)}
        return sounds if seconds is None else sounds | {"second_per_grids": torch.as_tensor(seconds)}

    def collapse_placeholders(self, prompt_ids: list[int]) -> list[int]:
        """One placeholder for each medium or stream: vLLM expands each, and would expand expanded ones again."""
        config = self.config.thinker_config
        begin, end = (config.vision_start_token_id, config.audio_start_token_id), config.audio_end_token_id
        kept, in_stream = [], False
        for before, token in pairwise([-1, *prompt_ids]):
            if (before, token) == begin:
                in_stream = True
                kept.append(config.video_token_id)
            elif in_stream:
                in_stream = token != end
            elif token != before or token not in (config.video_token_id, config.audio_token_id):
                kept.append(token)
        return kept


def rope_index(
    config: Qwen2_5OmniThinkerConfig,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    **media: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """TMRoPE's positions ``[3, B, L]``, by upstream's code without its weights; streams are known by how they begin."""
    model = Qwen2_5OmniThinkerForConditionalGeneration
    thinker = SimpleNamespace(
        config=config,
        spatial_merge_size=config.vision_config.spatial_merge_size,
        get_llm_pos_ids_for_vision=partial(model.get_llm_pos_ids_for_vision, None),
        get_chunked_index=partial(model.get_chunked_index, None),
    )
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    begins = input_ids[:, :-1].eq(config.vision_start_token_id) & input_ids[:, 1:].eq(config.audio_start_token_id)
    return model.get_rope_index(thinker, input_ids, attention_mask=mask, use_audio_in_video=bool(begins.any()), **media)
