"""vLLM frees linear weights after repacking them for a CPU, and ``load_weights`` then has no target."""

from types import ModuleType

from verl_omni.adjustments import replaces


def keep_linear_weights(_: ModuleType) -> None:
    """Keep a linear layer's weight after vLLM has repacked it, so that the next weight update has a target.

    In vLLM's workers that verl drives, which import verl's module before their model; vLLM alone needs no second copy.
    """
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        name = "dispatch_cpu_unquantized_gemm"
        replaces(utils, name)(lambda dispatch, layer, remove_weight: dispatch(layer, remove_weight=False))
