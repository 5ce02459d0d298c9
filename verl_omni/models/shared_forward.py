"""A forward in which prompts are computed once per group, and logits left out where nobody reads them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from verl_omni.media.cache import enabled

from .log_probs import BACKEND, log_probs_where_read, where_read
from .sharing import Media, can_share, common_prefixes, media_of_rows, rows_of, share_prompts


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
        temperature: float | None,
        shift_labels: torch.Tensor | None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The model's forward; see ``HumanOmniQwen2ForCausalLM``'s.

        Args:
            inputs: ``input_ids``, ``attention_mask`` and ``position_ids``.
            media: the family's, by their names.
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
            and can_share(decoder.config._attn_implementation)
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
        kwargs.pop("return_dict", None)
        hidden = self.hidden_states(**inputs, **media, **kwargs)
        labels = input_ids.roll(-1, -1) if shift_labels is None else shift_labels
        read, source = where_read(rows, leaders, common, ends, input_ids.numel())
        return log_probs_where_read(hidden, labels, self.get_output_embeddings().weight, temperature, read, source)

    @property
    def _verl_fused_kernels_backend(self) -> str:
        return BACKEND

    @_verl_fused_kernels_backend.setter
    def _verl_fused_kernels_backend(self, backend: str) -> None:
        # What verl does before it replaces the forward by one that drops media.
        raise ValueError(
            f"use_fused_kernels with impl_backend={backend} would train {type(self).__name__} without its media: set "
            f"fused_kernel_options.impl_backend={BACKEND}"
        )
