"""Configuration of HumanOmni with its towers nested, so that a model directory needs no further path."""

import math

from transformers import BertConfig, PreTrainedConfig, Qwen2Config, SiglipVisionConfig, WhisperConfig

# mm_projector_type -> (depth of its RegStages, spatial padding of its Conv3d, parity of the patch grid it fits).
# The padding decides the parity: the convolved branches must come out at ceil(grid / 2), like the pooled face branch.
PROJECTORS = {"all_in_one_small": (2, 0, 0), "all_in_one": (4, 1, 1)}


def video_tokens(num_frames: int, image_size: int, patch_size: int) -> int:
    """Feature vectors of a video: the patch grid, halved and rounded up, for each frame."""
    return num_frames * math.ceil(image_size // patch_size / 2) ** 2


class HumanOmniConfig(Qwen2Config):
    """Qwen2's configuration plus the towers', as such or as dicts.

    Args:
        vision_config: SigLIP vision tower.
        audio_config: Whisper, of which the encoder is used.
        bert_config: the BERT that reads the question for the gate.
        mm_projector_type: ``all_in_one_small`` (HumanOmni-0.5B, even patch grid) or ``all_in_one`` (7B, odd grid).
        mm_audio_projector_type: ``mlp2x_gelu``, the only one the released models have.
        mm_vision_select_layer: index into SigLIP's hidden states, -2 = before the last layer.
        num_frames: frames per video.
        video_token_id, audio_token_id: placeholder ids; one token per feature vector.
        original_files, original_tensors: of a converted checkpoint, the original's small JSON files and which optional
            tensors it had; for the way back.
        freeze_bert: train the gate on top of BERT but not BERT, as the original's supervised fine-tuning does (its GRPO
            trains both). A choice of the run, set in recipes under ``override_config`` and not saved with the model.

    Raises:
        ValueError: a projector type this package does not know, or a patch grid the projector does not fit.
    """

    model_type = "HumanOmni_qwen2"
    sub_configs = {"vision_config": SiglipVisionConfig, "audio_config": WhisperConfig, "bert_config": BertConfig}  # noqa: RUF012

    vision_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    bert_config: dict | PreTrainedConfig | None = None
    mm_projector_type: str = "all_in_one_small"
    mm_audio_projector_type: str = "mlp2x_gelu"
    mm_vision_select_layer: int = -2
    num_frames: int = 8
    video_token_id: int | None = None
    audio_token_id: int | None = None
    original_files: dict | None = None
    original_tensors: dict | None = None
    freeze_bert: bool = False

    def __post_init__(self, **kwargs):
        for name, config_class in self.sub_configs.items():
            value = getattr(self, name)
            if not isinstance(value, PreTrainedConfig):
                setattr(self, name, config_class(**(value or {})))
        if self.mm_projector_type not in PROJECTORS:
            raise ValueError(f"mm_projector_type {self.mm_projector_type!r}: known are {sorted(PROJECTORS)}")
        if self.mm_audio_projector_type != "mlp2x_gelu":
            raise ValueError(f"mm_audio_projector_type {self.mm_audio_projector_type!r}: known is 'mlp2x_gelu'")
        size, patch = self.vision_config.image_size, self.vision_config.patch_size
        grid = size // patch  # patches per side of a frame
        if grid % 2 != PROJECTORS[self.mm_projector_type][2]:
            raise ValueError(
                f"a {size} px image in {patch} px patches gives a {grid}x{grid} grid, which {self.mm_projector_type} "
                "cannot halve: all_in_one_small needs an even grid, all_in_one an odd one"
            )
        super().__post_init__(**kwargs)

    @property
    def num_video_tokens(self) -> int:
        """Placeholders of one video."""
        return video_tokens(self.num_frames, self.vision_config.image_size, self.vision_config.patch_size)

    @property
    def num_audio_tokens(self) -> int:
        """Placeholders of one sound: Whisper's positions, averaged by threes."""
        return self.audio_config.max_source_positions // 3
