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
    """Rows of each rank, equally many, a group's side by side; split only where groups do not come out even on ranks.

    Ranks get about as much to compute: a prompt once and all of its answers. Rows of padding fill up groups that lack a
    rollout, so that micro-batches of a group's size hold one each.

    Args:
        keys: ``{uid}_{session}_{index}`` of each row; their number is a multiple of ``ranks``.
        tags: verl's, of each row: ``prompt_len, response_len`` and perhaps ``is_padding``.
        ranks: of the data-parallel group.
    """
    from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

    by_uid: dict[str, list[int]] = {}
    padding: list[int] = []
    for row, (key, tag) in enumerate(zip(keys, tags, strict=True)):
        (padding if tag.get("is_padding") else by_uid.setdefault(uid_of(key), [])).append(row)
    full = max(map(len, by_uid.values()), default=1)
    for rows in by_uid.values():
        rows += [padding.pop() for _ in range(min(len(padding), full - len(rows)))]
    groups = [*by_uid.values(), *(padding[start : start + full] for start in range(0, len(padding), full))]
    if len(groups) % ranks == 0:
        costs = [tags[rows[0]]["prompt_len"] + sum(tags[row]["response_len"] for row in rows) for rows in groups]
        balanced = get_seqlen_balanced_partitions(costs, ranks, equal_size=True)
        groups = [groups[index] for partition in balanced for index in partition]
    order, size = [row for rows in groups for row in rows], len(keys) // ranks
    return [order[start : start + size] for start in range(0, len(order), size)]
