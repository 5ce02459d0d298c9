"""Adjustments of verl and vLLM, where they have no extension point: one file each, named like its diff in ``patches/``.

``verl_omni.plugin`` lists them all, and calls each with its module right after that is imported. A second call does
nothing, and a run that has neither this package's rows nor its rewards nor its model goes on as without.
"""

from collections.abc import Callable
from functools import wraps
from types import ModuleType


def replaces(owner: ModuleType | type, name: str) -> Callable[[Callable], Callable]:
    """Put the decorated function, whose first argument is the original, in the place of ``owner.name``, once.

    Another adjustment of the same function goes around the first.
    """

    def replace(function: Callable) -> Callable:
        original = getattr(owner, name)
        mark, marks = (function.__module__, function.__qualname__), getattr(original, "replaced_by", ())
        if mark in marks:
            return original

        @wraps(original)
        def adjusted(*args: object, **kwargs: object) -> object:
            return function(original, *args, **kwargs)

        adjusted.replaced_by = (*marks, mark)
        setattr(owner, name, adjusted)
        return adjusted

    return replace
