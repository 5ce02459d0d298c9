"""``python -m benchmarks.variants OUT ...``: the variants of GRPO in the demos of several seeds, side by side.

    make demo ARGS="--seed 1 --out outputs/seed1 --variants explanation dapo dr_grpo gspo rloo no_think"

makes one of the folders. Prints a table, the figures of the seeds side by side, and draws it: a point a seed.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from verl_omni.study.demo import cost

FORMATS = {
    "accuracy, %": "{:.1f}",
    "EPC, %": "{:.1f}",
    "other emotion": "{:.0f}",
    "tokens": "{:.1f}",
    "s a step": "{:.1f}",
}


def figures_of(out: Path) -> pd.DataFrame:
    """The figures of each GRPO model in one demo, on its held-out clips."""
    models = {}
    names = sorted(path.name.removesuffix(".scores.json") for path in (out / "results").glob("R1-Omni*.scores.json"))
    for name in names:
        scores = json.loads((out / "results" / f"{name}.scores.json").read_text())
        normal = next(score for score in scores if score["variant"] == "normal")
        contradicting = normal["consistency"].get("contradicting", 0)
        models[name] = [normal["war"], normal["epc"], contradicting, *cost(out, name)]
    return pd.DataFrame.from_dict(models, orient="index", columns=list(FORMATS))


def draw(figures: pd.DataFrame, path: Path) -> None:
    """A panel a figure: a point for each seed, a line at their mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(figures.index))
    size = (13, 0.8 + 0.4 * len(names))
    _, panels = plt.subplots(1, figures.shape[1], figsize=size, sharey=True, layout="constrained")
    for panel, column in zip(panels, figures, strict=True):
        for row, name in enumerate(names):
            seeds = figures.loc[[name], column]
            panel.plot(seeds, [row] * len(seeds), "o", color="C0", alpha=0.6)
            panel.plot([seeds.mean()] * 2, [row - 0.3, row + 0.3], color="C1")
        panel.set_title(column, fontsize=10)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    plt.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.variants", description=__doc__.splitlines()[0])
    parser.add_argument("demos", nargs="+", type=Path, metavar="OUT", help="folders of demos, one a seed")
    parser.add_argument("--picture", type=Path, default=Path("outputs/variants.png"))
    args = parser.parse_args()
    figures = pd.concat([figures_of(out) for out in args.demos])
    table = Table("model", *FORMATS, box=box.MARKDOWN)
    for name, seeds in figures.groupby(level=0, sort=False):
        table.add_row(name, *(", ".join(map(form.format, seeds[column])) for column, form in FORMATS.items()))
    Console(width=200).print(table)
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    draw(figures, args.picture)
    print(f"picture: {args.picture}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
