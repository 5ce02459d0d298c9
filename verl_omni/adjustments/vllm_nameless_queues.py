"""vLLM's queues (420 MB) have names in /dev/shm until their creator removes them, which it cannot once killed.

Ray ends verl's rollouts by SIGKILL, to vLLM's engine and to Python's resource tracker, at the end of each run.
"""

import os
from types import ModuleType
from typing import Any

from verl_omni.adjustments import replaces
from verl_omni.plugin import RUN


def drop_names(shm_broadcast: ModuleType) -> None:
    """Remove a queue's name as soon as all have mapped it: the kernel then frees it with the last of them.

    In processes of this package's runs and commands alone (``RUN``).
    """

    @replaces(shm_broadcast.MessageQueue, "wait_until_ready")
    def wait_then_drop_name(wait_until_ready, queue: Any) -> None:
        wait_until_ready(queue)
        if RUN in os.environ and queue.buffer is not None and queue.buffer.is_creator:
            queue.buffer.shared_memory.unlink()
            queue.buffer.is_creator = False  # nothing is left for it to remove
