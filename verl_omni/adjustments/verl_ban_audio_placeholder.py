"""A sampled audio placeholder has no audio behind it; verl bans those of images and videos only."""

from functools import cache
from types import ModuleType


@cache
def ban_audio_placeholder(utils: ModuleType) -> None:
    """Ban the audio placeholder from sampling, as verl bans those of images and videos.

    Args:
        utils: `verl.workers.rollout.utils`.
    """
    get_vision_placeholder_token_ids = utils.get_vision_placeholder_token_ids

    def get_placeholder_token_ids(processor: object) -> list[int]:
        token_ids = get_vision_placeholder_token_ids(processor)
        audio = utils.get_processor_token_id(processor, "audio")
        return token_ids if audio is None or audio in token_ids else [*token_ids, audio]

    utils.get_vision_placeholder_token_ids = get_placeholder_token_ids
