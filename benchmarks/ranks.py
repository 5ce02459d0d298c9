"""Which prompts each rank of a step computes, in verl's order and by whole groups, by the trainer's own functions."""

import random
import statistics

import torch
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions

from verl_omni.adjustments.verl_groups_together import get_whole_group_partitions, uid_of

from . import ROLLOUTS, Figures

PROMPTS, PROMPT_TOKENS, DRAWS = 16, 940, 20  # a step of the recipe


def measure_ranks(ranks: int) -> Figures:
    """Means over draws of answers of 140 ± 30 tokens.

    Returns:
        Clips encoded in a step over all ranks, the tokens that the fullest rank computes (now, a prompt once), and
        by how many percent those are more than a rank's mean.
    """
    draw = random.Random(0)
    values: dict[str, dict[str, list[float]]] = {}
    for _ in range(DRAWS):
        keys = [f"{prompt}_{rollout}_0" for prompt in range(PROMPTS) for rollout in range(ROLLOUTS)]
        draw.shuffle(keys)
        answers = [max(1, round(draw.gauss(140, 30))) for _ in keys]
        tags = [{"prompt_len": PROMPT_TOKENS, "response_len": length} for length in answers]
        workload = calculate_workload(torch.tensor(answers) + PROMPT_TOKENS)
        partitions = {
            "plain": get_seqlen_balanced_partitions(workload, k_partitions=ranks, equal_size=True),
            "now": get_whole_group_partitions(keys, tags, ranks),
        }
        for which, rows_of_ranks in partitions.items():
            groups = [len({uid_of(keys[row]) for row in rows}) for rows in rows_of_ranks]
            prompts = groups if which == "now" else map(len, rows_of_ranks)
            tokens = [
                PROMPT_TOKENS * times + sum(answers[row] for row in rows)
                for times, rows in zip(prompts, rows_of_ranks, strict=True)
            ]
            for name, value in (
                (f"clips encoded a step, {ranks} ranks", sum(groups)),
                (f"tokens of the fullest rank, {ranks} ranks", max(tokens)),
                (f"above a rank's mean, {ranks} ranks, %", 100 * (max(tokens) * ranks / sum(tokens) - 1)),
            ):
                values.setdefault(name, {}).setdefault(which, []).append(value)
    return {name: {which: statistics.mean(one) for which, one in both.items()} for name, both in values.items()}
