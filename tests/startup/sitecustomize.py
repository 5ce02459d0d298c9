"""Python imports this first in each process that the tests start: it is on ``PYTHONPATH`` in the Makefile.

What verl and vLLM import is millions of objects that stay; to look through them for garbage is a tenth of an import.
"""

import gc

gc.set_threshold(100_000, 50, 50)
