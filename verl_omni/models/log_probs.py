"""No logits where nobody reads them: verl's contract of fused kernels (``use_fused_kernels``), by verl's own kernel.

verl reads the log-probabilities of answers. Those of media tokens, which no answer comes before, are left 0; those of
what a group's sequences begin with are taken once.
"""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

BACKEND = "verl_omni"  # of ``fused_kernel_options.impl_backend``: verl leaves the model's own forward in place
TOKENS_AT_ONCE = 128  # 74 MiB of logits in float32 with Qwen2's vocabulary


@dataclass
class LogProbsOutput(CausalLMOutputWithPast):
    """``log_probs`` and ``entropy``, ``[B, L]``: at each token, of the next one."""

    log_probs: torch.FloatTensor | None = None
    entropy: torch.FloatTensor | None = None


def where_read(
    rows: torch.Tensor, leaders: list[int], common: list[int], media_ends: list[int], tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in the flattened batch log-probabilities are taken ``[T]``, and whose each of its ``tokens`` has ``[N]``.

    Args:
        rows, leaders, common: see ``models.sharing``.
        media_ends: of each sequence, how many tokens go to the end of its media.
    """
    device = rows.device
    rank = torch.arange(rows.shape[1], device=device)
    leader = torch.tensor(leaders, device=device)
    # A group's last common token has a next one of each sequence's own.
    own = (rank >= torch.tensor(common, device=device)[:, None] - 1) | (
        leader == torch.arange(len(rows), device=device)
    )[:, None]
    valid = rows >= 0
    read = valid & own & (rank >= torch.tensor(media_ends, device=device)[:, None] - 1)
    source = torch.arange(tokens, device=device)
    source[rows[valid]] = torch.where(own, rows, rows[leader])[valid]
    return rows[read], source


def log_probs_where_read(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    head: torch.Tensor,
    temperature: float,
    read: torch.Tensor,
    source: torch.Tensor,
) -> LogProbsOutput:
    """Log-probabilities of ``labels [B, L]`` and entropies, from ``hidden [B, L, H]`` and the head's weight ``[V, H]``.

    Args:
        read, source: see ``where_read``.
    """
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    fused = FusedLinearForPPO(chunk_size=TOKENS_AT_ONCE)
    taken = fused(hidden.flatten(0, 1)[read], head, labels.flatten()[read], temperature=temperature)
    log_probs, entropy = (
        values.new_zeros(labels.numel()).index_put((read,), values)[source].view(labels.shape) for values in taken
    )
    return LogProbsOutput(log_probs=log_probs, entropy=entropy)
