"""What a clip costs, as it is with verl's plain behaviour (``VERL_OMNI_SHARING=0``) and now, side by side.

Every figure comes from the code that training runs: the dataset, verl's agent-loop functions, the processor, the rows
for TransferQueue, vLLM's engine, the model's passes, and verl's trainer.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from verl_omni.media import cache

ROLLOUTS = 8
Figures = dict[str, dict[str, float]]  # figure -> "plain" and "now" -> value


@contextmanager
def plain_or_shared(plain: bool) -> Iterator[None]:
    """Sharing switched off or on, from empty caches."""
    for kept in (cache.DECODED, cache.PROCESSED):
        kept.clear()
    with patch.dict(os.environ, VERL_OMNI_SHARING="0" if plain else "1"):
        yield


@contextmanager
def counted(counts: Counter, owner: object, name: str, label: str) -> Iterator[None]:
    function = getattr(owner, name)

    def counting(*args, **kwargs):
        counts[label] += 1
        return function(*args, **kwargs)

    counting.__name__ = name
    with patch.object(owner, name, counting):
        yield
