"""torch refuses the backend "cpu:gloo,cpu:gloo", which verl composes for device ``cpu``."""

import os
from types import ModuleType

from verl_omni.adjustments import replaces
from verl_omni.platforms.cpu import is_cpu_only

# torchrun sets these; one process needs no torchrun (port 0: any free one).
SINGLE = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def use_gloo_once(distributed: ModuleType) -> None:
    """Initialise process groups with backend ``cpu:gloo``."""
    if not is_cpu_only():
        return

    @replaces(distributed, "initialize_global_process_group_ray")
    def initialize_ray(initialize, timeout_second: int | None = None, backend: str = "cpu:gloo") -> None:
        initialize(timeout_second, backend)

    @replaces(distributed, "initialize_global_process_group")
    def initialize_global_process_group(_, timeout_second: int = 36000) -> tuple[int, int, int]:
        os.environ.update(SINGLE | os.environ)
        initialize_ray(timeout_second)
        return tuple(int(os.environ[name]) for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"))
