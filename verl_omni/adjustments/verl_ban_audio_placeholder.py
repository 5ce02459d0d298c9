"""A sampled audio placeholder has no audio behind it; verl bans those of images and videos only."""

from functools import cache
from types import ModuleType

from verl_omni.models.families import family_of


@cache
def ban_audio_placeholder(utils: ModuleType) -> None:
    """Ban the audio placeholder from sampling, as verl bans those of images and videos.

    Args:
        utils: ``verl.workers.rollout.utils``.
    """
    get_vision_placeholder_token_ids = utils.get_vision_placeholder_token_ids

    def get_placeholder_token_ids(processor: object) -> list[int]:
        token_ids = get_vision_placeholder_token_ids(processor)
        audio = utils.get_processor_token_id(processor, "audio")
        config = getattr(processor, "config", None)
        family = family_of(config)  # whose positions also count what begins a medium
        banned = {*token_ids, *(family.placeholders(config) if family else ()), *([] if audio is None else [audio])}
        return sorted(banned)

    utils.get_vision_placeholder_token_ids = get_placeholder_token_ids
