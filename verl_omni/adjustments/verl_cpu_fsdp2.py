"""verl has no engine for device ``cpu``, and offloads the reference's parameters to pinned memory."""

from types import ModuleType

from verl_omni.adjustments import replaces
from verl_omni.platforms.cpu import is_cpu_only


def register_engine(transformer_impl: ModuleType) -> None:
    """Register verl's FSDP2 engine for device ``cpu``, without the pinned memory that only an accelerator can use."""
    if is_cpu_only():
        registry = transformer_impl.EngineRegistry
        if "cpu" not in registry._engines["language_model"]["fsdp2"]:
            registry.register("language_model", ["fsdp2"], device="cpu")(transformer_impl.FSDPEngineWithLMHead)
        replaces(transformer_impl, "CPUOffloadPolicy")(lambda policy, pin_memory=False: policy(pin_memory=False))
