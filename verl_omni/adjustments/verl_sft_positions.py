"""verl's fine-tuning dataset knows the positions of Qwen2-VL alone, by the name of an image processor."""

from functools import cache, wraps
from types import ModuleType
from typing import Any

import torch
from transformers import ProcessorMixin


@cache
def ask_the_processor(dataset: ModuleType) -> None:
    """Take positions from a processor that has ``get_rope_index_kwargs``, as verl's agent loop does.

    Args:
        dataset: ``verl.utils.dataset.multiturn_sft_dataset``.
    """
    of_qwen2_vl, get_row = dataset.get_rope_index, dataset.MultiTurnSFTDataset.__getitem__

    @wraps(of_qwen2_vl)
    def get_rope_index(processor: ProcessorMixin, input_ids: torch.Tensor, **media: Any) -> torch.Tensor:
        if hasattr(processor, "get_rope_index_kwargs"):
            return input_ids.expand(3, -1)  # their shape: verl does not hand on what else they depend on
        return of_qwen2_vl(processor, input_ids=input_ids, **media)

    @wraps(get_row)
    def row_with_positions(self: Any, item: int) -> dict[str, Any]:
        row = get_row(self, item)
        if hasattr(self.processor, "get_rope_index_kwargs"):
            row["position_ids"] = positions(self.processor, **row)
        return row

    dataset.get_rope_index, dataset.MultiTurnSFTDataset.__getitem__ = get_rope_index, row_with_positions


def positions(
    processor: ProcessorMixin,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    multi_modal_inputs: dict[str, torch.Tensor] | None = None,
    **_: torch.Tensor,
) -> torch.Tensor:
    """``[4, L]``: through the text, and the processor's three; 0 where ``attention_mask`` is."""
    media = multi_modal_inputs or {}
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    grids = {key: media.get(key) for key in ("image_grid_thw", "video_grid_thw")}
    three, _ = processor.get_rope_index(
        input_ids=input_ids[None], attention_mask=mask[None], **grids, **processor.get_rope_index_kwargs(media)
    )
    return torch.cat([(mask.cumsum(0) - 1)[None], three[:, 0]]) * mask
