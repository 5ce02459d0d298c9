"""``python -m verl_omni COMMAND``: the commands around training; training itself is verl's own entry points."""

import argparse
import importlib
import sys

from verl_omni.errors import InputError

# name -> one-line help; each command is a module of verl_omni.cli, imported only when it runs.
COMMANDS = {
    "demo": "the whole study on a CPU with a tiny model and a corpus made on the spot",
    "prepare": "turn a corpus on disk into rows for verl",
    "convert": "turn an original R1-Omni checkpoint into a self-contained directory, and back",
    "doctor": "what is installed and registered, and whether this machine fits",
    "check": "check that every media file of a rows file decodes",
    "evaluate": "answer every row with vLLM and measure WAR and UAR",
    "infer": "think and answer for one clip",
    "serve": "`vllm serve` that reads clips as in training, also where vLLM is the CPU build",
    "report": "one HTML page from evaluation results and training logs",
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m verl_omni", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in argv if word in COMMANDS), None)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == chosen:  # the others need only their line in the overview
            command = importlib.import_module(f"verl_omni.cli.{name}")
            command.add_arguments(subparser)
            subparser.epilog = getattr(command, "EPILOG", None)
            subparser.formatter_class = argparse.RawDescriptionHelpFormatter
            subparser.set_defaults(run=command.run)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
