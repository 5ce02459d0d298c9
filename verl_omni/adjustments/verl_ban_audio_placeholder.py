"""A sampled audio placeholder has no audio behind it; verl bans those of images and videos only."""

from types import ModuleType

from verl_omni.adjustments import replaces
from verl_omni.models.families import family_of


def ban_audio_placeholder(utils: ModuleType) -> None:
    """Ban from sampling what stands for sound, and what else a family's positions count."""

    @replaces(utils, "get_vision_placeholder_token_ids")
    def get_placeholder_token_ids(of_vision, processor: object) -> list[int]:
        audio, family = utils.get_processor_token_id(processor, "audio"), family_of(getattr(processor, "config", None))
        banned = {*of_vision(processor), *(family.placeholders(processor.config) if family else ())}
        return sorted(banned if audio is None else banned | {audio})
