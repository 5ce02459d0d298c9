"""A reward that differs between the answers of a model that has learnt nothing, so that GRPO has a gradient."""


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None) -> float:
    return sum(solution_str.encode()) % 97 / 97
