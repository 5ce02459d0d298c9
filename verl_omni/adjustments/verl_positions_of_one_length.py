"""verl takes the wrong dimension of positions ``[4, L]`` for the ragged one where all sequences have one length.

TransferQueue packs what it stores by ``torch.nested.as_nested_tensor``, which then takes the first one, and verl's own
repair believes that it did not: the next ``unbind`` stops the step. Lengths that differ are left to verl.
"""

from types import ModuleType

from tensordict import TensorDict

from verl_omni.adjustments import replaces


def fix_positions_of_one_length(tensordict_utils: ModuleType) -> None:
    """Make positions ``[B, 4, L]`` ragged in their last dimension, also where nothing is ragged."""

    @replaces(tensordict_utils, "maybe_fix_3d_position_ids")
    def maybe_fix_3d_position_ids(fix, data: TensorDict) -> None:
        positions = data.get("position_ids", None)
        nested = positions is not None and positions.dim() == 3 and positions.is_nested
        if nested and positions.offsets()[-1] == positions.values().shape[0]:
            positions._ragged_idx = 1
            data["position_ids"] = tensordict_utils.nested_tensor_from_tensor_list(list(positions.unbind()))
        fix(data)
