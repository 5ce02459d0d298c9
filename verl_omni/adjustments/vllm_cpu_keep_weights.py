"""vLLM frees linear weights after repacking them for a CPU, and ``load_weights`` then has no target."""

from functools import cache
from types import ModuleType


@cache
def keep_linear_weights(vllm_rollout_utils: ModuleType) -> None:
    """Keep a linear layer's weight after vLLM has repacked it, so that the next weight update has a target.

    Args:
        vllm_rollout_utils: ``verl.workers.rollout.vllm_rollout.utils``, which a vLLM worker imports before its model
            when verl drives it; vLLM alone needs no second copy.
    """
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        dispatch = utils.dispatch_cpu_unquantized_gemm
        utils.dispatch_cpu_unquantized_gemm = lambda layer, remove_weight: dispatch(layer, remove_weight=False)
