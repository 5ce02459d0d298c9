"""verl bans tokens from what a served model samples; a reward model that classifies, as BERT, samples nothing."""

from functools import cache, wraps
from types import ModuleType
from typing import Any


@cache
def serve_classifiers(vllm_rollout_utils: ModuleType) -> None:
    """Let verl's server hold a model that has no logits of tokens, and no experts, where it stops otherwise.

    Args:
        vllm_rollout_utils: ``verl.workers.rollout.vllm_rollout.utils``.
    """
    extension = vllm_rollout_utils.vLLMColocateWorkerExtension
    adapt_model = extension.monkey_patch_model

    @wraps(adapt_model)
    def adapt_language_model(self: Any, vocab_size: int, banned_token_ids: list[int] | None = None) -> None:
        if hasattr(self.model_runner.model, "compute_logits"):
            adapt_model(self, vocab_size, banned_token_ids)

    extension.monkey_patch_model = adapt_language_model
