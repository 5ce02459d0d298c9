"""HumanOmni in verl 0.9.1: what verl asks of a model that it does not know by name."""

from types import ModuleType

MODEL_TYPE = "HumanOmni_qwen2"


def register_flops(flops_counter: ModuleType) -> None:
    """Register HumanOmni with verl's FLOPs counter (metric `perf/mfu`): its language model is Qwen2.

    The towers are left out, so the figure is a lower bound.

    Args:
        flops_counter: `verl.utils.flops_counter`.
    """
    flops_counter.ESTIMATE_FUNC[MODEL_TYPE] = flops_counter.ESTIMATE_FUNC["qwen2"]
