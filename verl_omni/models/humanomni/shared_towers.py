"""One tower pass per clip: for the trainer's model, which meets a clip in each rollout, in actor and in reference.

The samples of a batch that have the same clip (and question) are encoded and projected as one; autograd adds up what
reaches them, so that gradients are those of encoding each. The frozen towers' outputs are kept across passes, for the
actor and the reference of a process alike, until the actor was updated: rollouts want the memory. vLLM has an encoder
cache of its own.
"""

from collections.abc import Callable, Hashable
from functools import lru_cache

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

from verl_omni.media.cache import ContentCache, enabled

from .configuration import HumanOmniConfig
from .towers import HumanOmniTowers

# On the towers' device, in each process. A full-size clip with sound is 6.2 MB in bfloat16.
TOWER_OUTPUTS = ContentCache(max_bytes=512 * 2**20)
TRAINED: set[Hashable] = set()  # keys of those that passes with gradients have read since the last update
FINGERPRINTS = WeakTensorKeyDictionary()  # tensor -> (its version, ``fingerprints`` of it)
ROW = 2048  # words of 8 bytes that are hashed at a time


class SharedTowers(HumanOmniTowers):
    """``HumanOmniTowers`` that work once for all samples of a clip."""

    def init_towers(self, config: HumanOmniConfig) -> None:
        super().init_towers(config)
        for tower in (self.vision_tower, self.audio_tower):
            forget_fingerprint(tower)
            tower.register_load_state_dict_post_hook(forget_fingerprint)

    def get_video_features(
        self, pixel_values: torch.Tensor, bert_input_ids: torch.Tensor, bert_attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """See ``HumanOmniTowers``."""
        if not enabled() or pixel_values.is_meta:
            return super().get_video_features(pixel_values, bert_input_ids, bert_attention_mask)
        clips = fingerprints(pixel_values)
        questions = fingerprints(bert_input_ids.masked_fill(bert_attention_mask == 0, -1))
        first, inverse = distinct(list(zip(clips, questions, strict=True)))
        patches = self.encode_once(
            self.vision_tower, self.encode_video, self.skip_video, pixel_values[first], [clips[i] for i in first]
        )
        features = self.mm_projector(patches, self.branch_probs(bert_input_ids[first], bert_attention_mask[first]))
        return features[inverse]

    def get_audio_features(self, input_features: torch.Tensor) -> torch.Tensor:
        """See ``HumanOmniTowers``."""
        if not enabled() or input_features.is_meta:
            return super().get_audio_features(input_features)
        clips = fingerprints(input_features)
        first, inverse = distinct(clips)
        encoded = self.encode_once(
            self.audio_tower, self.encode_audio, self.skip_audio, input_features[first], [clips[i] for i in first]
        )
        return self.project_audio(encoded)[inverse]

    def encode_once(
        self,
        tower: nn.Module,
        encode: Callable[[torch.Tensor], torch.Tensor],
        skip: Callable[[], None],
        inputs: torch.Tensor,
        clips: list[Hashable],
    ) -> torch.Tensor:
        """``encode(inputs)`` of a frozen tower, of which only the ``clips`` that are not kept yet are computed."""
        device = inputs.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        keys = [(weights_fingerprint(tower), inputs.device, autocast, clip) for clip in clips]
        if torch.is_grad_enabled():
            TRAINED.update(keys)
        known = {key: TOWER_OUTPUTS.find(key) for key in keys}
        missing = {key: index for index, key in enumerate(keys) if known[key] is None}
        fresh: dict[Hashable, torch.Tensor] = {}
        if missing:
            encoded = encode(inputs[list(missing.values())])
            fresh = {key: output.clone() for key, output in zip(missing, encoded, strict=True)}
        else:
            skip()  # other ranks may not have it
        outputs = torch.stack([fresh.get(key, known[key]) for key in keys])
        if not outputs.is_inference():  # such a tensor could not take part in training later
            for key, output in fresh.items():
                TOWER_OUTPUTS.get(key, lambda output=output: output)
        return outputs


@register_optimizer_step_post_hook
def drop_trained(*_: object) -> None:
    """After the update that a clip was for, nothing reads its outputs."""
    TOWER_OUTPUTS.clear(TRAINED)
    TRAINED.clear()


def forget_fingerprint(tower: nn.Module, *_: object) -> None:
    tower.content = None


def weights_fingerprint(tower: nn.Module) -> Hashable:
    """Of a frozen tower's parameters, computed when they were loaded or changed; a copy of the tower computes its own.

    Weights written through ``.data``, which autograd does not count as a change, need ``forget_fingerprint``.
    """
    parameters = [p.to_local() if isinstance(p, DTensor) else p for p in tower.parameters()]
    state = (id(tower), parameters[0].dtype, sum(0 if p.is_inference() else p._version for p in parameters))
    if tower.content is None or tower.content[0] != state:
        tower.content = (state, (parameters[0].dtype, *(fingerprint(p.detach()) for p in parameters)))
    return tower.content[1]


def distinct(keys: list[Hashable]) -> tuple[list[int], list[int]]:
    """Index of each distinct key's first occurrence, and for each key which of those is its own."""
    first: dict[Hashable, int] = {}
    for index, key in enumerate(keys):
        first.setdefault(key, index)
    place = {key: number for number, key in enumerate(first)}
    return list(first.values()), [place[key] for key in keys]


def fingerprints(items: torch.Tensor) -> list[Hashable]:
    """One per item of ``[N, ...]``; equal items have equal ones. A forward asks for its prompts and for its towers."""
    version = None if items.is_inference() else items._version  # that one does not say whether it was changed
    known, names = FINGERPRINTS.get(items, (None, []))
    if version is None or version != known:
        names = [tuple(row) for row in torch.stack([_hash(item) for item in items]).tolist()]
        FINGERPRINTS[items] = version, names
    return names


def fingerprint(tensor: torch.Tensor) -> Hashable:
    return (tuple(tensor.shape), *_hash(tensor).tolist())


@torch.no_grad()
def _hash(tensor: torch.Tensor) -> torch.Tensor:
    """128 bits of a tensor's content, int64 ``[2]``: two multilinear hashes (mod 2^64), by rows and then over rows.

    Computed where the tensor lies: a GPU would otherwise wait for the host to hash megabytes.
    """
    bits = tensor.contiguous().flatten().view(torch.uint8)
    words = nn.functional.pad(bits, (0, -len(bits) % (8 * ROW))).view(torch.int64).view(-1, ROW)  # [rows, ROW]
    columns, rows = _random(ROW, tensor.device), _random(len(words), tensor.device)
    lanes = []
    for lane in (0, 1):
        row_hashes = (words * columns[lane]).sum(dim=1)
        lanes.append(((row_hashes ^ (row_hashes >> 29)) * rows[lane]).sum())
    return torch.stack(lanes)


@lru_cache(maxsize=64)
def _random(length: int, device: torch.device) -> torch.Tensor:
    """Odd int64 numbers ``[2, length]``, always the same."""
    generator = torch.Generator().manual_seed(length)
    return (torch.randint(-(2**62), 2**62, (2, length), generator=generator) * 2 + 1).to(device)
