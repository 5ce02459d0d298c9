"""No logits where nobody reads them: verl's contract of fused kernels (``use_fused_kernels``), by verl's own kernel.

verl reads the log-probabilities of answers. Those up to the end of the media are left 0; those of what a group's
sequences begin with are taken once.
"""

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

BACKEND = "verl_omni"  # of ``fused_kernel_options.impl_backend``: verl leaves the model's own forward in place
TOKENS_AT_ONCE = 128  # 74 MiB of logits in float32 with Qwen2's vocabulary


def where_read(
    rows: torch.Tensor, leaders: list[int], common: list[int], media_ends: list[int], tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in the flattened batch log-probabilities are taken ``[T]``, and whose each of its ``tokens`` has ``[N]``.

    Args:
        rows, leaders, common: see ``models.sharing``.
        media_ends: of each sequence, how many tokens go to the end of its media.
    """
    rank, valid = torch.arange(rows.shape[1], device=rows.device), rows >= 0
    leads = [leader == row for row, leader in enumerate(leaders)]
    leads, common, ends = (torch.tensor(each, device=rows.device)[:, None] for each in (leads, common, media_ends))
    own = leads | (rank >= common - 1)  # a group's last common token has a next one of each sequence's own
    source = torch.arange(tokens, device=rows.device)
    source[rows[valid]] = torch.where(own, rows, rows[leaders])[valid]
    return rows[valid & own & (rank >= ends - 1)], source


def log_probs_where_read(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    head: torch.Tensor,
    temperature: float,
    read: torch.Tensor,
    source: torch.Tensor,
) -> CausalLMOutputWithPast:
    """Log-probabilities of ``labels [B, L]``, the next tokens, and entropies.

    Of ``hidden [B, L, H]``, the head's weight ``[V, H]``, and what ``where_read`` returns.
    """
    from verl.models.transformers.dense_common import CausalLMOutputForPPO
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    fused = FusedLinearForPPO(chunk_size=TOKENS_AT_ONCE)
    taken = fused(hidden.flatten(0, 1)[read], head, labels.flatten()[read], temperature=temperature)
    log_probs, entropy = (
        values.new_zeros(labels.numel()).index_put((read,), values)[source].view(labels.shape) for values in taken
    )
    return CausalLMOutputForPPO(log_probs=log_probs, entropy=entropy)
