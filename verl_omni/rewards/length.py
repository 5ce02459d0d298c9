"""A length that is long enough: what a run without it drifts to is seen in the metrics of a term with weight 0."""


def length_reward(completion: str, label: str = "", limit: int = 256, buffer: int = 64) -> float:
    """Return 0.0 up to ``limit - buffer`` words, then a line down to -1.0 at ``limit`` and beyond.

    DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), counted in words: a reward function sees text.

    >>> length_reward("word " * 240)
    -0.75
    """
    over = len(completion.split(maxsplit=limit)) - (limit - buffer)  # more words than the limit change nothing
    return -min(max(over / buffer, 0.0), 1.0)
