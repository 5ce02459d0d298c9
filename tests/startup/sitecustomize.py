"""Python imports this first in each process that the tests start: it is on ``PYTHONPATH`` in the Makefile.

What verl and vLLM import is millions of objects that stay; to look through them for garbage is a tenth of an import.
transformers imports scikit-learn for assisted generation, which no test asks for: another tenth.
"""

import gc

import wrapt

gc.set_threshold(100_000, 50, 50)


@wrapt.when_imported("transformers.utils.import_utils")
def without_assisted_generation(import_utils: object) -> None:
    import_utils.is_sklearn_available = lambda: False
