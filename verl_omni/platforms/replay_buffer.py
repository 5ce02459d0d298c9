"""verl's replay buffer for steps that take seconds; named in a recipe as ``trainer.v1.sampler.custom_sampler``."""

from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer


class OftenPolledReplayBuffer(ReplayBuffer):
    """Asks every 0.2 s whether the rollouts are there, not every 2 s: the trainer waits until it has asked.

    verl hands ``algorithm.filter_groups`` and ``trainer.v1.sampler.sync_refill_failed_groups`` to its own replay buffer
    only (``_build_replay_buffer``); for these, set ``trainer.v1.sampler.custom_sampler.path=null``.
    """

    def __init__(self, *args: Any, poll_interval: float = 0.2, **kwargs: Any):
        super().__init__(*args, poll_interval=poll_interval, **kwargs)
