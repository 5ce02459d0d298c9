"""``python -m benchmarks``: what is decoded, processed, moved and encoded how often, and how long it takes."""

import argparse
import json
import os
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import Figures

# figure -> (target for plain / now, or for now alone, or for the original's / now)
TARGETS = {
    "clip to model inputs, ms": ("ratio", 3),
    "clip to model inputs from the media cache, 240p, ms": ("ratio", 10),
    "clip to model inputs from the media cache, 720p, ms": ("ratio", 50),
    "media files that a second start decodes": ("most", 0),
    "decodes a prompt": ("most", 1),
    "runs over a prompt's media": ("most", 1),
    "MB through TransferQueue a rollout": ("ratio", 8),
    "processor runs a prompt": ("most", 1),
    "encoder passes a prompt": ("most", 1),
    **{f"clips encoded a step, {ranks} ranks": ("most", 16) for ranks in (1, 2, 4, 8)},
    "memory over 1000 decodes, MiB": ("most", 50),
    "memory over 10000 decodes, MiB": ("most", 50),
    "memory over 500 training steps, MiB": ("most", 50),
    "peak memory of an update above weights and AdamW, GB": ("ratio", 4),
    "a GRPO step, s": ("ratio", 2),
    "tower passes a clip and step": ("most", 1),
    "log-prob + reference + update, s": ("ratio", 8),
    "a whole step of a prompt, s": ("ratio to the original", 5),
}


PARTS = ("step", "clip", "prompt", "ranks", "memory", "trainer", "vllm")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench.json"), help="the figures as JSON")
    parser.add_argument("--decodes", type=int, default=1000, choices=(1000, 10000), help="for the growth of memory")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    args = parser.parse_args()
    import torch

    from benchmarks import ROLLOUTS, clip, memory, prompt, ranks, step, trainer
    from verl_omni.models.humanomni.tiny import build_tiny

    results: dict[str, Figures] = {}

    def keep(section: str, figures: Figures) -> None:
        """Show a section and write all so far: the last ones take minutes."""
        results[section] = figures
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        Console().print(table({section: figures}))

    os.environ["VERL_OMNI_MEDIA_CACHE"] = "0"  # but where it is measured
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build_tiny(folder / "model")
        processor = clip.load_processor(model)
        clips = {size: clip.make_clip(folder / f"{size}.mp4", *shape) for size, shape in clip.SIZES.items()}
        if "step" in args.parts:
            keep(*memory.measure_update(model))  # first, when this process is small
            keep(*step.measure_whole_step(clips["240p"], processor, folder))
        torch.set_num_threads(1)  # per core
        if "clip" in args.parts:
            for size, path in clips.items():
                figures = clip.measure_clip(path, processor)
                sums = {which: sum(figure[which] for figure in figures.values()) for which in ("plain", "now")}
                keep(f"a clip of {size}, one core", {**figures, "clip to model inputs, ms": sums})
                keep(
                    f"a clip of {size}, one core, in the media cache",
                    clip.measure_store(path, size, folder / "media", processor, sums["plain"]),
                )
            keep("a corpus of two clips", clip.measure_second_start(list(clips.values()), folder / "second"))
        for size, path in clips.items() if "prompt" in args.parts else ():
            keep(f"a prompt of {ROLLOUTS} rollouts, {size}", prompt.measure_prompt(path, processor))
        for number in (1, 2, 4, 8) if "ranks" in args.parts else ():
            keep(f"a step of {ranks.PROMPTS} prompts on {number} ranks", ranks.measure_ranks(number))
        if "memory" in args.parts:
            second = clip.make_clip(folder / "second.mp4", *clip.SIZES["240p"], seconds=1)
            keep("growth of host memory", memory.measure_decodes(second, processor, args.decodes))
            keep("growth of host memory, training", memory.measure_training(model))
        torch.set_num_threads(threads)
        if "trainer" in args.parts:
            keep("the demo's GRPO, medians by verl's timings", trainer.measure_grpo(folder, model))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # vLLM takes what is free
        # Last: vLLM ties this process' threads to a core.
        if "vllm" in args.parts:
            keep(f"a prompt of {ROLLOUTS} rollouts in vLLM", prompt.measure_vllm(clips["240p"], model))
    print(f"written to {args.out}")
    return 0


def table(results: dict[str, Figures]) -> Table:
    table = Table(
        "", "the original", "plain", "now", "plain / now", "target", title="plain: verl's own behaviour, and R1-Omni's"
    )
    for section, figures in results.items():
        table.add_section()
        table.add_row(f"[bold]{section}")
        for name, values in figures.items():
            plain, now = values["plain"], values["now"]
            ratio = f"{plain / now:.1f}" if now > 0 else ""
            original = f"{values['original']:.4g}" if "original" in values else ""
            table.add_row(f"  {name}", original, f"{plain:.4g}", f"{now:.4g}", ratio, verdict(name, **values))
    return table


def verdict(name: str, plain: float, now: float, original: float = 0) -> str:
    """The figure's target, and whether it is met."""
    if name not in TARGETS:
        return ""
    kind, bound = TARGETS[name]
    if kind == "most":
        return f"at most {bound}: {'met' if now <= bound else '[red]missed'}"
    other = plain if kind == "ratio" else original
    return f"{kind} at least {bound}: {'met' if other >= bound * now else '[red]missed'} ({other / now:.1f})"


if __name__ == "__main__":
    raise SystemExit(main())
