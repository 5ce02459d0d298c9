"""vLLM's queues (420 MB) have names in /dev/shm until their creator removes them, which it cannot once killed."""

import os
from functools import cache, wraps
from types import ModuleType
from typing import Any

from verl_omni.plugin import RUN


@cache
def drop_names(shm_broadcast: ModuleType) -> None:
    """Remove a queue's name as soon as all have mapped it: the kernel then frees it with the last of them.

    Ray ends verl's rollouts by SIGKILL, to vLLM's engine and to Python's resource tracker, at the end of each run. In
    processes of this package's runs and commands alone (``RUN``).

    Args:
        shm_broadcast: ``vllm.distributed.device_communicators.shm_broadcast``.
    """
    wait_until_ready = shm_broadcast.MessageQueue.wait_until_ready

    @wraps(wait_until_ready)
    def wait_then_drop_name(self: Any) -> None:
        wait_until_ready(self)
        if RUN in os.environ and self.buffer is not None and self.buffer.is_creator:
            self.buffer.shared_memory.unlink()
            self.buffer.is_creator = False  # nothing is left for it to remove

    shm_broadcast.MessageQueue.wait_until_ready = wait_then_drop_name
