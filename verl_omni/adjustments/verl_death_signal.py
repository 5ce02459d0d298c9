"""verl lets the kernel kill vLLM's worker together with its engine, and both leave their shared memory behind."""

import os
from types import ModuleType

from verl_omni.plugin import RUN


def end_without_signal(vllm_rollout_utils: ModuleType) -> None:
    """Let vLLM's worker outlive its engine for the moment that ``plugin.end_with_parent`` takes, which ends it then.

    Args:
        vllm_rollout_utils: ``verl.workers.rollout.vllm_rollout.utils``, whose extension of the worker sets the signal.
    """
    if RUN in os.environ:
        vllm_rollout_utils.set_death_signal = _nothing


def _nothing() -> None: ...
