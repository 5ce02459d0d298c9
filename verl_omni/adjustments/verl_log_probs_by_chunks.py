"""Without flash-attn, verl takes the log-probabilities of packed logits token by token."""

from functools import cache, wraps
from types import ModuleType

import torch

LOGITS_AT_ONCE = 2**25  # 128 MiB in float32


@cache
def take_log_probs_of_many_tokens(torch_functional: ModuleType) -> None:
    """Take the log-probabilities of packed logits by chunks of tokens, on a CPU and on a GPU alike.

    With flash-attn installed, verl does not come to this function.

    Args:
        torch_functional: ``verl.utils.torch_functional``.
    """
    of_each_row = torch_functional.logprobs_from_logits_v2

    @wraps(of_each_row)
    def logprobs_from_logits_v2(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if logits.dim() != 2:  # a row is a sequence, not a token
            return of_each_row(logits, labels)
        tokens = max(1, LOGITS_AT_ONCE // logits.shape[-1])
        chunks = zip(logits.split(tokens), labels.split(tokens), strict=True)
        return torch.cat([of_each_row(some[None], their[None])[0] for some, their in chunks])

    torch_functional.logprobs_from_logits_v2 = logprobs_from_logits_v2
