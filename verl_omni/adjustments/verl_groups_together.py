"""The rollouts of a prompt on one rank, side by side; imports nothing of verl, in whose imports it is loaded."""

from types import ModuleType
from typing import Any

from verl_omni.adjustments import replaces
from verl_omni.media.cache import enabled


def keep_groups_together(trainer_base: ModuleType) -> None:
    """Order each batch by groups: verl's balancing by length scatters a prompt's rollouts over the ranks.

    Adds to verl's ``global_seqlen/`` metrics, which then describe this order, ``ungrouped_balanced_min`` and
    ``_max`` of verl's own, and ``groups`` beside ``groups_computed``, where a prompt counts for each rank that has it.
    """
    if "get_whole_group_partitions" in vars(trainer_base):  # upstream does it, or this has been here
        return

    @replaces(trainer_base.PPOTrainer, "_balance_batch")
    def balance_groups(balance, self: Any, batch: Any, metrics: dict, logging_prefix="global_seqlen", **kwargs) -> Any:
        batch = balance(self, batch, metrics, logging_prefix=logging_prefix, **kwargs)
        if not enabled() or not has_our_rows(self):
            return batch
        ranks = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1
        partitions = get_whole_group_partitions(batch.keys, batch.tags, ranks)
        tokens = [sum(batch.tags[row]["seq_len"] for row in rows) for rows in partitions]
        for name, value in (("balanced_min", min(tokens)), ("balanced_max", max(tokens))):
            metrics[f"{logging_prefix}/ungrouped_{name}"] = metrics[f"{logging_prefix}/{name}"]
            metrics[f"{logging_prefix}/{name}"] = value
        groups = [
            {uid_of(batch.keys[row]) for row in rows if not batch.tags[row].get("is_padding")} for rows in partitions
        ]
        metrics[f"{logging_prefix}/groups"] = len(set().union(*groups))
        metrics[f"{logging_prefix}/groups_computed"] = sum(map(len, groups))
        batch.reorder([row for rows in partitions for row in rows])
        return batch

    trainer_base.get_whole_group_partitions = get_whole_group_partitions


def has_our_rows(trainer: Any) -> bool:
    """Whether the run trains on this package's rows."""
    from verl_omni.data.dataset import OmniRLHFDataset

    return isinstance(trainer.train_dataset, OmniRLHFDataset)


def uid_of(key: str) -> str:
    """The prompt's uid in its own key, in a rollout's ``{uid}_{session}_{index}`` and in a clip's."""
    return key.partition("_")[0]


def get_whole_group_partitions(keys: list[str], tags: list[dict[str, Any]], ranks: int) -> list[list[int]]:
    """Rows of each rank, equally many, a group's side by side; a group is split only where it fits on no rank whole.

    Groups go to the rank with the least to compute, the largest first: a prompt once and all of its answers. Rows of
    padding come last, and fill up groups that lack a rollout, so that micro-batches of a group's size hold one each.

    Args:
        keys: ``{uid}_{session}_{index}`` of each row; their number is a multiple of ``ranks``.
        tags: verl's, of each row: ``prompt_len, response_len`` and perhaps ``is_padding``.
        ranks: of the data-parallel group.
    """
    groups: dict[str, list[int]] = {}
    padding: list[int] = []
    for row, (key, tag) in enumerate(zip(keys, tags, strict=True)):
        (padding if tag.get("is_padding") else groups.setdefault(uid_of(key), [])).append(row)

    def cost(rows: list[int]) -> int:
        return max(tags[row]["prompt_len"] for row in rows) + sum(tags[row]["response_len"] for row in rows)

    full = max(map(len, groups.values()), default=1)
    room, load = [len(keys) // ranks] * ranks, [0] * ranks
    partitions: list[list[int]] = [[] for _ in range(ranks)]
    waiting = sorted(groups.values(), key=lambda rows: (-len(rows), -cost(rows)))
    while waiting:
        group = waiting.pop(0)
        fitting = [rank for rank in range(ranks) if room[rank] >= len(group)]
        rank = min(fitting or range(ranks), key=lambda rank: load[rank] if fitting else -room[rank])
        here, rest = group[: room[rank]], group[room[rank] :]
        if rest:
            waiting.insert(0, rest)
        fill = min(len(padding), full - len(here), room[rank] - len(here)) if not rest else 0
        rows = here + [padding.pop() for _ in range(fill)]
        partitions[rank] += rows
        room[rank] -= len(rows)
        load[rank] += cost(here)
    for rank in range(ranks):
        partitions[rank] += [padding.pop() for _ in range(room[rank])]
    return partitions
