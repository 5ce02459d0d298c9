"""The exported model of a LoRA run: its adapters merged, so that transformers and vLLM load it like any other.

verl writes PEFT's parameter names (``base_model.model….q_proj.base_layer.weight``), which belong to no model class. Its
sharded checkpoint, from which a run resumes, keeps the adapters as they are.
"""

from types import ModuleType

import torch

from verl_omni.adjustments import replaces
from verl_omni.models.families import family_of


def export_merged_adapters(fsdp_checkpoint_manager: ModuleType) -> None:
    """Merge our families' LoRA adapters into what a checkpoint's ``hf_model`` holds."""
    from verl.utils.fsdp_utils import merged_lora_context, normalize_peft_param_name

    @replaces(fsdp_checkpoint_manager, "get_fsdp_full_state_dict")
    def get_fsdp_full_state_dict(full_state_dict, model: torch.nn.Module, **options: bool) -> dict[str, torch.Tensor]:
        unwrapped = getattr(model, "_fsdp_wrapped_module", model)
        if not hasattr(unwrapped, "peft_config") or family_of(unwrapped.config) is None:
            return full_state_dict(model, **options)
        with merged_lora_context(model, backup_adapters=True):
            weights = normalize_peft_param_name(full_state_dict(model, **options))
            # Copies: on a CPU these are the model's own tensors, from which the adapters are taken out again.
            return {name: weight.clone() for name, weight in weights.items()}
