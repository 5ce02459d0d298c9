"""torch refuses the backend "cpu:gloo,cpu:gloo", which verl composes for device ``cpu``."""

import os
from functools import cache, partial
from types import ModuleType

from verl_omni.platforms.cpu import is_cpu_only

# torchrun sets these; one process needs no torchrun (port 0: any free one).
SINGLE = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


@cache
def use_gloo_once(distributed: ModuleType) -> None:
    """Initialise process groups with backend ``cpu:gloo``."""
    if not is_cpu_only():
        return
    initialize_ray = partial(distributed.initialize_global_process_group_ray, backend="cpu:gloo")

    def initialize_global_process_group(timeout_second: int = 36000) -> tuple[int, int, int]:
        os.environ.update(SINGLE | os.environ)
        initialize_ray(timeout_second=timeout_second)
        return tuple(int(os.environ[name]) for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"))

    distributed.initialize_global_process_group_ray = initialize_ray
    distributed.initialize_global_process_group = initialize_global_process_group
