"""verl's fine-tuning dataset knows the positions of Qwen2-VL alone, by the name of an image processor."""

from types import ModuleType
from typing import Any

import torch
from transformers import ProcessorMixin

from verl_omni.adjustments import replaces


def ask_the_processor(dataset: ModuleType) -> None:
    """Take positions from a processor that has ``get_rope_index_kwargs``, as verl's agent loop does."""

    @replaces(dataset, "get_rope_index")
    def get_rope_index(of_qwen2_vl, processor: ProcessorMixin, input_ids: torch.Tensor, **media: Any) -> torch.Tensor:
        if hasattr(processor, "get_rope_index_kwargs"):
            return input_ids.expand(3, -1)  # their shape: verl does not hand on what else they depend on
        return of_qwen2_vl(processor, input_ids=input_ids, **media)

    @replaces(dataset.MultiTurnSFTDataset, "__getitem__")
    def row_with_positions(get_row, rows: Any, item: int) -> dict[str, Any]:
        row, processor = get_row(rows, item), rows.processor
        if hasattr(processor, "get_rope_index_kwargs"):
            ids, media = row["input_ids"], row.get("multi_modal_inputs") or {}
            mask = row.get("attention_mask", torch.ones_like(ids))
            grids = {key: media.get(key) for key in ("image_grid_thw", "video_grid_thw")}
            three, _ = processor.get_rope_index(
                input_ids=ids[None], attention_mask=mask[None], **grids, **processor.get_rope_index_kwargs(media)
            )
            # [4, L]: through the text, and the processor's three; 0 where `mask` is
            row["position_ids"] = torch.cat([(mask.cumsum(0) - 1)[None], three[:, 0]]) * mask
        return row
