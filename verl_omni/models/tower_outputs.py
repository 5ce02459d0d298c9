"""One tower pass per clip: for the trainer's model, which meets a clip in each rollout, in actor and in reference.

The samples of a batch that have the same clip (and question) are encoded and projected as one; autograd adds up what
reaches them, so that gradients are those of encoding each. The frozen towers' outputs are kept across passes, for the
actor and the reference of a process alike, until the actor was updated: rollouts want the memory. vLLM has an encoder
cache of its own.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

from verl_omni.media.cache import ContentCache, enabled

# On the towers' device, in each process. A full-size clip with sound is 6.2 MB in bfloat16.
TOWER_OUTPUTS = ContentCache(max_bytes=512 * 2**20)
TRAINED: set[Hashable] = set()  # keys of those that passes with gradients have read since the last update
FINGERPRINTS = WeakTensorKeyDictionary()  # tensor -> (its version, ``fingerprints`` of it)
ROW = 2048  # words of 8 bytes that are hashed at a time


def features_once(
    names: Sequence[Hashable],
    encode: Callable[[list[int]], Sequence[torch.Tensor]],
    tower: nn.Module | None = None,
    skip: Callable[[], object] = lambda: None,
) -> list[torch.Tensor]:
    """Features of each item of a batch; of items with one name, those of one.

    Args:
        names: what tells items apart, see ``fingerprints``.
        encode: indices of items -> the features of each; called at most once.
        tower: the frozen tower that ``encode`` runs, and nothing else: its outputs are kept across passes.
        skip: called in place of ``encode`` if all are kept, since other ranks may not have them.
    """
    if not enabled():
        return list(encode(list(range(len(names)))))
    keys = list(names)
    if tower is not None:  # what the outputs are kept under, and may come from another pass
        device = next(tower.parameters()).device
        autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        keys = [(weights_fingerprint(tower), device, autocast, name) for name in names]
        if torch.is_grad_enabled():
            TRAINED.update(keys)
    known = {key: None if tower is None else TOWER_OUTPUTS.find(key) for key in keys}
    missing = {key: index for index, key in enumerate(keys) if known[key] is None}
    if missing:
        known.update(zip(missing, encode(list(missing.values())), strict=True))
    else:
        skip()
    for key in missing if tower is not None else ():
        if not known[key].is_inference():  # it could not take part in training later
            TOWER_OUTPUTS.get(key, known[key].clone)  # without the batch's other outputs, whose memory it shares
    return [known[key] for key in keys]


# Of all optimizers: neither verl nor torch tells a model of its own. Where no tower's outputs are kept it does nothing.
@register_optimizer_step_post_hook
def drop_trained(*_: object) -> None:
    """After the update that a clip was for, nothing reads its outputs."""
    TOWER_OUTPUTS.clear(TRAINED)
    TRAINED.clear()


def watch_weights(tower: nn.Module) -> None:
    """Prepare a frozen tower for ``features_once``: it is to know when weights are loaded."""
    forget_fingerprint(tower)
    tower.register_load_state_dict_post_hook(forget_fingerprint)


def forget_fingerprint(tower: nn.Module, *_: object) -> None:
    tower.content = None


def weights_fingerprint(tower: nn.Module) -> Hashable:
    """Of a frozen tower's parameters, computed when they were loaded or changed; a copy of the tower computes its own.

    Weights written through ``.data``, which autograd does not count as a change, need ``forget_fingerprint``.
    """
    parameters = [p.to_local() if isinstance(p, DTensor) else p for p in tower.parameters()]
    state = (id(tower), parameters[0].dtype, sum(0 if p.is_inference() else p._version for p in parameters))
    if tower.content is None or tower.content[0] != state:
        hashes = ((tuple(p.shape), *_hash(p).tolist()) for p in parameters)
        tower.content = (state, (parameters[0].dtype, *hashes))
    return tower.content[1]


def fingerprints(items: torch.Tensor, sizes: list[int] | None = None) -> list[Hashable]:
    """One per item of ``[N, ...]``, or of ``sizes`` along its first dimension; equal items have equal ones.

    A forward asks for its prompts and for its towers.
    """
    if not enabled():
        return list(range(len(items if sizes is None else sizes)))
    version = None if items.is_inference() else items._version  # that one does not say whether it was changed
    known, names = FINGERPRINTS.get(items, (None, []))
    if version is None or version != known:
        parts = items if sizes is None else items.split(sizes)
        names = [tuple(row) for row in torch.stack([_hash(part) for part in parts]).tolist()]
        FINGERPRINTS[items] = version, names
    return names


@torch.no_grad()
def _hash(tensor: torch.Tensor) -> torch.Tensor:
    """128 bits of a tensor's content, int64 ``[2]``: two multilinear hashes (mod 2^64), by rows and then over rows.

    Computed where the tensor lies: a GPU would otherwise wait for the host to hash megabytes.
    """
    bits = tensor.contiguous().flatten().view(torch.uint8)
    words = nn.functional.pad(bits, (0, -len(bits) % (8 * ROW))).view(torch.int64).view(-1, ROW)  # [rows, ROW]
    columns, rows = _random(ROW, tensor.device), _random(len(words), tensor.device)
    row_hashes = (words * columns[:, None]).sum(dim=2)  # [2, rows]
    return ((row_hashes ^ (row_hashes >> 29)) * rows).sum(dim=1)


@lru_cache(maxsize=64)
def _random(length: int, device: torch.device) -> torch.Tensor:
    """Odd int64 numbers ``[2, length]``, always the same."""
    generator = torch.Generator().manual_seed(length)
    return (torch.randint(-(2**62), 2**62, (2, length), generator=generator) * 2 + 1).to(device)
