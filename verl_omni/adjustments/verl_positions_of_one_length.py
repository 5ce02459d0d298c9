"""verl takes the wrong dimension of positions ``[4, L]`` for the ragged one where all sequences have one length."""

from functools import cache, wraps
from types import ModuleType

from tensordict import TensorDict


@cache
def fix_positions_of_one_length(tensordict_utils: ModuleType) -> None:
    """Make positions ``[B, 4, L]`` ragged in their last dimension, also where nothing is ragged.

    TransferQueue packs what it stores by ``torch.nested.as_nested_tensor``, which then takes the first one, and verl's
    own repair believes that it did not: the next ``unbind`` stops the step. Lengths that differ are left to verl.

    Args:
        tensordict_utils: ``verl.utils.tensordict_utils``.
    """
    fix = tensordict_utils.maybe_fix_3d_position_ids

    @wraps(fix)
    def maybe_fix_3d_position_ids(data: TensorDict) -> None:
        positions = data.get("position_ids", None)
        nested = positions is not None and positions.dim() == 3 and positions.is_nested
        if nested and positions.offsets()[-1] == positions.values().shape[0]:
            positions._ragged_idx = 1
            data["position_ids"] = tensordict_utils.nested_tensor_from_tensor_list(list(positions.unbind()))
        fix(data)

    tensordict_utils.maybe_fix_3d_position_ids = maybe_fix_3d_position_ids
