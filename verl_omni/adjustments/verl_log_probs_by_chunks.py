"""Without flash-attn, verl takes the log-probabilities of packed logits token by token, on a CPU and on a GPU alike."""

from types import ModuleType

import torch

from verl_omni.adjustments import replaces

LOGITS_AT_ONCE = 2**25  # 128 MiB in float32


def take_log_probs_of_many_tokens(torch_functional: ModuleType) -> None:
    """Take them by chunks of tokens."""

    @replaces(torch_functional, "logprobs_from_logits_v2")
    def logprobs_from_logits_v2(of_each_row, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if logits.dim() != 2:  # a row is a sequence, not a token
            return of_each_row(logits, labels)
        tokens = max(1, LOGITS_AT_ONCE // logits.shape[-1])
        chunks = zip(logits.split(tokens), labels.split(tokens), strict=True)
        return torch.cat([of_each_row(some[None], their[None])[0] for some, their in chunks])
