"""A forward in which prompts are computed once per group, and logits left out where nobody reads them.

The latter is verl's contract of fused kernels (``use_fused_kernels``), by verl's own kernel: verl reads the
log-probabilities of answers. Those up to the end of the media are left 0; those of what a group shares are taken once.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from verl_omni.media.cache import enabled

from .sharing import Media, common_prefixes, media_of_rows, rows_of, share_prompts

BACKEND = "verl_omni"  # of ``fused_kernel_options.impl_backend``: verl leaves the model's own forward in place
TOKENS_AT_ONCE = 128  # 74 MiB of logits in float32 with Qwen2's vocabulary


class SharedForward:
    """For a causal model of any family, which says what its media are, and takes ``shared_prompts=``."""

    # The batch's media, and the placeholders of those that it lacks; logits, and the decoder's output ``[B, L, H]``,
    # whatever is shared.
    media_of: Callable[..., Iterable[Media]]
    forward_plain: Callable[..., CausalLMOutputWithPast]
    hidden_states: Callable[..., torch.Tensor]

    def forward_shared(
        self,
        inputs: dict[str, torch.Tensor | None],
        media: dict[str, torch.Tensor | None],
        temperature: float | None = None,
        shift_labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The model's forward.

        Args:
            inputs: ``input_ids [B, L]``, padded (with ``attention_mask``) or packed into ``[1, total]`` (no mask,
                ``position_ids`` that restart), and these two.
            media: the family's, by their names.
            temperature: return ``log_probs`` and ``entropy``, ``[B, L]`` each, in place of logits (verl's
                ``use_fused_kernels``).
            shift_labels: ``[B, L]`` next tokens of which; default ``input_ids``, shifted.
            **kwargs: the plain forward's. With ``use_cache=False`` and ``position_ids``, as verl calls it, prompts that
                sequences share are computed once; what then stands at padding, which nobody reads, is not the plain
                forward's.
        """
        input_ids, mask, decoder = inputs["input_ids"], inputs["attention_mask"], self.get_decoder()
        share = (
            enabled()
            and kwargs.get("use_cache") is False
            and input_ids is not None
            and not input_ids.is_meta
            and inputs["position_ids"] is not None
            and any(tensor is not None for tensor in media.values())
            and (mask is None or (isinstance(mask, torch.Tensor) and mask.dim() == 2))
            and hasattr(ALL_ATTENTION_FUNCTIONS.get(decoder.config._attn_implementation), "knows_shared_prompts")
            and not decoder.has_sliding_layers
        )
        if not share and temperature is None:
            return self.forward_plain(**inputs, **media, **kwargs)
        rows = rows_of(**inputs)
        names, ends = media_of_rows(rows, input_ids.numel(), self.media_of(input_ids, **media))
        names = names if share else [None] * len(rows)
        leaders, common = common_prefixes(rows, input_ids, inputs["position_ids"], names)
        kwargs["shared_prompts"] = share_prompts(rows, leaders, common, input_ids.numel())
        if temperature is None:
            return self.forward_plain(**inputs, **media, **kwargs)
        from verl.models.transformers.dense_common import CausalLMOutputForPPO
        from verl.utils.experimental.torch_functional import FusedLinearForPPO

        kwargs.pop("return_dict", None)
        hidden = self.hidden_states(**inputs, **media, **kwargs).flatten(0, 1)  # [B * L, H]
        labels = input_ids.roll(-1, -1) if shift_labels is None else shift_labels
        read, source = where_read(rows, leaders, common, ends, input_ids.numel())
        fused, head = FusedLinearForPPO(chunk_size=TOKENS_AT_ONCE), self.get_output_embeddings().weight
        taken = fused(hidden[read], head, labels.flatten()[read], temperature=temperature)
        log_probs, entropy = (
            values.new_zeros(labels.numel()).index_put((read,), values)[source].view(labels.shape) for values in taken
        )
        return CausalLMOutputForPPO(log_probs=log_probs, entropy=entropy)

    def refuse_backend(self, backend: str) -> None:
        raise ValueError(
            f"use_fused_kernels with impl_backend={backend} would train {type(self).__name__} without its media: set "
            f"fused_kernel_options.impl_backend={BACKEND}"
        )

    # What verl sets before it replaces the forward by one that drops media.
    _verl_fused_kernels_backend = property(fset=refuse_backend)


def where_read(
    rows: torch.Tensor, leaders: torch.Tensor, common: torch.Tensor, media_ends: list[int], tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in the flattened batch log-probabilities are taken ``[T]``, and whose each of its ``tokens`` has ``[N]``.

    Args:
        rows, leaders, common: see ``models.sharing``.
        media_ends: of each sequence, how many tokens go to the end of its media.
    """
    rank, valid = torch.arange(rows.shape[1], device=rows.device), rows >= 0
    leads = leaders == torch.arange(len(rows), device=rows.device)
    ends = torch.tensor(media_ends, device=rows.device)
    # A group's last common token has a next one of each sequence's own.
    own = leads[:, None] | (rank >= common[:, None] - 1)
    source = torch.arange(tokens, device=rows.device)
    source[rows[valid]] = torch.where(own, rows, rows[leaders])[valid]
    return rows[valid & own & (rank >= ends[:, None] - 1)], source
