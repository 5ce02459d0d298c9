"""verl's replay buffer for steps that take seconds; named in a recipe as ``trainer.v1.sampler.custom_sampler``."""

from functools import partialmethod

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer


class OftenPolledReplayBuffer(ReplayBuffer):
    """Asks every 0.2 s whether the rollouts are there, not every 2 s: the trainer waits until it has asked.

    verl hands ``algorithm.filter_groups`` and ``trainer.v1.sampler.sync_refill_failed_groups`` to its own replay buffer
    only (``_build_replay_buffer``); for these, set ``trainer.v1.sampler.custom_sampler.path=null``.
    """

    __init__ = partialmethod(ReplayBuffer.__init__, poll_interval=0.2)
