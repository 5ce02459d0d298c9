"""`python -m verl_omni bench`: what is decoded, processed, moved and encoded how often, and how long it takes."""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

# figure -> (target for plain / now, or for now alone)
TARGETS = {
    "clip to model inputs, ms": ("ratio", 3),
    "decodes a prompt": ("most", 1),
    "runs over a prompt's media": ("most", 1),
    "MB through TransferQueue a rollout": ("ratio", 8),
    "memory over 1000 decodes, MiB": ("most", 50),
    "tower passes a clip and step": ("most", 1),
    "log-prob + reference + update, s": ("ratio", 3),
}

Figures = dict[str, dict[str, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("outputs/bench.json"), help="the figures as JSON")


def run(args: argparse.Namespace) -> int:
    from verl_omni import benchmark

    console = Console()
    results: dict[str, Figures] = {}

    def keep(section: str, figures: Figures) -> None:
        """Show a section and write all so far: the last one takes minutes."""
        results[section] = figures
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        console.print(table({section: figures}))

    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, console.status("measuring"):
        processor = benchmark.load_processor(Path(folder) / "model")
        torch.set_num_threads(1)  # per core
        clips = {
            name: benchmark.write_clip(Path(folder) / f"{name}.mp4", *size) for name, size in benchmark.SIZES.items()
        }
        for name, clip in clips.items():
            figures = benchmark.measure_clip(clip, processor)
            sums = {which: sum(figure[which] for figure in figures.values()) for which in ("plain", "now")}
            keep(f"a clip of {name}, one core", {**figures, "clip to model inputs, ms": sums})
        for name, clip in clips.items():
            keep(f"a prompt of {benchmark.ROLLOUTS} rollouts, {name}", benchmark.measure_prompt(clip, processor))
        keep("host memory, 240p", benchmark.measure_memory(clips["240p"]))
        torch.set_num_threads(threads)
        figures, conditions = benchmark.measure_step()
        keep(f"a prompt of {benchmark.ROLLOUTS} rollouts, HumanOmni-0.5B, random weights ({conditions})", figures)
    print(f"written to {args.out}")
    return 0


def table(results: dict[str, Figures]) -> Table:
    table = Table("", "plain", "now", "plain / now", "target", title="plain: R1-Omni's and verl's own behaviour")
    for section, figures in results.items():
        table.add_section()
        table.add_row(f"[bold]{section}")
        for name, values in figures.items():
            plain, now = values["plain"], values["now"]
            ratio = f"{plain / now:.1f}" if now > 0 else ""
            table.add_row(f"  {name}", f"{plain:.4g}", f"{now:.4g}", ratio, verdict(name, plain, now))
    return table


def verdict(name: str, plain: float, now: float) -> str:
    """The figure's target, and whether it is met."""
    if name not in TARGETS:
        return ""
    kind, bound = TARGETS[name]
    met = now <= bound if kind == "most" else plain >= bound * now
    return f"{'at most' if kind == 'most' else 'ratio at least'} {bound}: {'met' if met else '[red]missed'}"
