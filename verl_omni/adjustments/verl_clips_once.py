"""One copy of a clip's model inputs per prompt on verl's TransferQueue, in place of one per rollout.

A rollout's row holds a reference; the inputs lie in a partition of their own, under a key made of the prompt's uid and
their content, for as long as the prompt's rollouts are there. They are part of TransferQueue's checkpoints like these.
"""

import asyncio
from collections.abc import Iterable
from functools import wraps
from types import ModuleType
from typing import Any

import torch
from cachetools import LRUCache
from tensordict import NonTensorStack, TensorDict

from verl_omni.adjustments.verl_groups_together import uid_of
from verl_omni.media.cache import ContentCache, enabled
from verl_omni.models.families import loaded

FIELD, PARTITION, REFERENCE = "multi_modal_inputs", "clips", "stored_as"
# In each trainer process; a full-size clip with sound has 6.3 MB.
FETCHED = ContentCache(512 * 2**20, size_of=lambda inputs: sum(tensor.nbytes for tensor in inputs.values()))
REMEMBERED = 4096  # of the keys that an agent-loop worker has stored


def store_clips_once(utils: ModuleType) -> None:
    """Let rollouts refer to their prompt's clip: when they are put, read and cleared."""
    if "put_rollouts" in vars(utils):  # upstream does it, or this has been here
        return
    tq, read = utils.tq, utils._async_meta_to_realdata
    put, get, clear = tq.async_kv_batch_put, tq.async_kv_batch_get, tq.kv_clear
    puts: LRUCache[str, asyncio.Task] = LRUCache(REMEMBERED)

    async def store(uid: str, inputs: dict[str, torch.Tensor]) -> dict[str, str]:
        from datasets.fingerprint import Hasher  # not needed, and slow to import, where no rollouts are put

        key = f"{uid}_{Hasher.hash(inputs)}"
        if key not in puts:  # the prompt's other rollouts wait for this one, or fail with it
            row = TensorDict({FIELD: NonTensorStack(inputs)}, batch_size=[1])
            sent = put(keys=[key], partition_id=PARTITION, fields=row, tags=[{"status": "success"}])
            puts[key] = asyncio.ensure_future(sent)
        await puts[key]
        return {REFERENCE: key}

    @wraps(put)
    async def put_rollouts(keys: list[str], partition_id: str, fields: TensorDict | None = None, **kwargs: Any) -> Any:
        if enabled() and fields is not None and FIELD in fields.keys():  # noqa: SIM118  (TensorDict has no `in`)
            rows = fields.get(FIELD).tolist()
            ours = [
                row for row, inputs in enumerate(rows) if inputs and any(family.owns(inputs) for family in loaded())
            ]
            for row in ours:  # what validation sampled is scored by its text, and no trainer reads it
                rows[row] = {} if partition_id == "val" else await store(uid_of(keys[row]), rows[row])
            if ours:
                fields[FIELD] = NonTensorStack(*rows)
        return await put(keys=keys, partition_id=partition_id, fields=fields, **kwargs)

    async def read_with_clips(meta: Any) -> TensorDict:
        batch = await read(meta)
        rows = batch.get(FIELD).tolist() if FIELD in batch.keys() else []  # noqa: SIM118
        references = {row: inputs[REFERENCE] for row, inputs in enumerate(rows) if inputs and REFERENCE in inputs}
        for row, key in references.items():
            rows[row] = FETCHED.find(key)
            if rows[row] is None:
                clip = await get(keys=[key], partition_id=PARTITION)
                rows[row] = FETCHED.get(key, clip.get(FIELD).tolist().pop)  # of one row
        if references:
            batch[FIELD] = NonTensorStack(*rows)
        return batch

    @wraps(clear)
    def clear_with_clips(keys: list[str] | str, partition_id: str) -> None:
        clear(keys=keys, partition_id=partition_id)
        if not (stored := keys_in(PARTITION)):
            return
        # A prompt's own key goes before its rollouts are used, and their clip stays; unless all of them failed.
        left = {uid_of(key) for key in keys_in(partition_id)}
        gone = {uid_of(key) for key in ([keys] if isinstance(keys, str) else keys)} - left
        clips = [key for key in stored if uid_of(key) in gone]
        if clips:
            clear(keys=clips, partition_id=PARTITION)

    def keys_in(partition_id: str) -> Iterable[str]:
        return (tq.kv_list(partition_id) or {}).get(partition_id, {})

    tq.async_kv_batch_put, tq.kv_clear, utils._async_meta_to_realdata = put_rollouts, clear_with_clips, read_with_clips
    utils.put_rollouts = put_rollouts  # a second call finds it
