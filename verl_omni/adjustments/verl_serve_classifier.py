"""verl bans tokens from what a served model samples; a reward model that classifies, as BERT, samples nothing."""

from types import ModuleType
from typing import Any

from verl_omni.adjustments import replaces


def serve_classifiers(vllm_rollout_utils: ModuleType) -> None:
    """Let verl's server hold a model that has no logits of tokens, and no experts, where it stops otherwise."""

    @replaces(vllm_rollout_utils.vLLMColocateWorkerExtension, "monkey_patch_model")
    def adapt_language_model(adapt_model, worker: Any, *args: Any, **kwargs: Any) -> None:
        if hasattr(worker.model_runner.model, "compute_logits"):
            adapt_model(worker, *args, **kwargs)
