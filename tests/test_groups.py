"""The rollouts of a prompt stay together: on the ranks, and in the language model."""

import random
from itertools import chain

import pytest

from verl_omni.adjustments.verl_groups_together import get_whole_group_partitions, uid_of


def batch(prompts: int, rollouts: int, multiple: int, missing: int = 0, seed: int = 0) -> tuple[list[str], list[dict]]:
    """Keys and tags as verl has them: shuffled, with rows of padding at the end."""
    draw = random.Random(seed)
    keys = [f"{prompt}_{rollout}_0" for prompt in range(prompts) for rollout in range(rollouts)]
    draw.shuffle(keys)
    keys = keys[missing:]
    tags = [{"prompt_len": 940, "response_len": draw.randint(0, 512)} for _ in keys]
    padding = -len(keys) % multiple
    keys += [f"pad_{row}_0" for row in range(padding)]
    return keys, tags + [{"prompt_len": 127, "response_len": 1, "is_padding": True}] * padding


def computed(keys: list[str], partitions: list[list[int]]) -> int:
    """How often a prompt has to be computed, over all ranks."""
    return sum(len({uid_of(keys[row]) for row in rows} - {"pad"}) for rows in partitions)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("missing", [0, 1, 5])
def test_the_recipes_groups_are_computed_once_at_any_number_of_ranks(ranks, missing):
    keys, tags = batch(16, 8, 128, missing)
    partitions = get_whole_group_partitions(keys, tags, ranks)
    assert sorted(chain(*partitions)) == list(range(128))
    assert {len(rows) for rows in partitions} == {128 // ranks}
    assert computed(keys, partitions) == 16
    # Micro-batches of a group's size: one prompt in each, but where a group has lost more rollouts than it got padding.
    order = [uid_of(keys[row]) for rows in partitions for row in rows]
    mixed = sum(len(set(order[start : start + 8]) - {"pad"}) > 1 for start in range(0, 128, 8))
    assert mixed == 0


@pytest.mark.parametrize("seed", range(20))
def test_groups_that_fit_on_no_rank_whole_are_split_and_no_row_is_lost(seed):
    draw = random.Random(seed)
    ranks, prompts, rollouts = draw.choice([2, 3, 5, 8]), draw.randint(1, 11), draw.randint(1, 9)
    keys, tags = batch(prompts, rollouts, ranks, missing=draw.randint(0, rollouts - 1), seed=seed)
    partitions = get_whole_group_partitions(keys, tags, ranks)
    assert sorted(chain(*partitions)) == list(range(len(keys)))
    assert len({len(rows) for rows in partitions}) == 1
    assert computed(keys, partitions) <= prompts + ranks - 1


def test_ranks_have_about_as_much_to_compute():
    keys, tags = batch(16, 8, 128)
    partitions = get_whole_group_partitions(keys, tags, 8)
    lengths = [sum(tags[row]["response_len"] for row in rows) for rows in partitions]
    assert max(lengths) < 1.15 * sum(lengths) / 8
