"""Training curves from verl's logs, as inline SVG.

Read are the ``file`` tracker's JSON lines, ``{"step": 1, "data": {"critic/rewards/mean": 0.5, …}}``
(``verl/utils/tracking.py``, ``trainer.logger=[file]``), and the ``console`` tracker's lines, ``step:1 - key:value - …``
(``verl/utils/logger/aggregate_logger.py``).
"""

import io
import json
import math
import re
from contextlib import suppress
from pathlib import Path

import pandas as pd
import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure

from verl_omni.errors import InputError

PANELS: dict[str, str] = yaml.safe_load(Path(__file__).with_name("panels.yaml").read_text(encoding="utf-8"))
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RECALL = re.compile(r"^(?P<corpus>val-\w+/.+)/recall/[^/]+/mean@\d+$")  # of the reward manager `accuracy_format`
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # in an SVG
CONSOLE = re.compile(r"\bstep:(\d+) - ")
CONSOLE_PAIR = re.compile(rf"(?P<key>[^\s:]+):(?:np\.\w+\()?(?P<value>{NUMBER})\)?$")


class LogError(InputError):
    """A log without a training step in it."""


Points = list[tuple[int, float]]  # a metric's (step, value)


def read_log(*paths: str | Path) -> dict[str, Points]:
    """Points of every metric of a log, UAR among them; ``LogError`` without any. Several are a resumed run's parts."""
    steps: dict[int, dict[str, float]] = {}
    for line in (line for path in paths for line in Path(path).read_text("utf-8", "replace").splitlines()):
        step, data = _step_of(line)
        steps.setdefault(step, {}).update({key: value for key, value in data.items() if math.isfinite(value)})
    if paths and not any(steps.values()):
        found = f"{', '.join(map(str, paths))}: no training step found"
        raise LogError(f"{found}; expected verl's `file` tracker (jsonl) or its console output")
    table = pd.DataFrame.from_dict(steps, orient="index").sort_index()  # [steps, metrics]
    # verl logs means over rows, which UAR is not: it is the mean of the classes' recalls.
    corpora = table.columns.astype(str).str.extract(RECALL, expand=False) + "/UAR"
    table = table.join(table.T.groupby(corpora).mean().T)
    return {key: list(values.dropna().items()) for key, values in table.items()}


def _step_of(line: str) -> tuple[int, dict[str, float]]:
    """A step and its metrics; none in a line of neither tracker."""
    if line.startswith('{"step":'):
        with suppress(json.JSONDecodeError):  # the last line of a run that was killed
            entry = json.loads(line)
            return entry["step"], {k: float(v) for k, v in entry["data"].items() if isinstance(v, (int, float))}
    if match := CONSOLE.search(line):
        pairs = (CONSOLE_PAIR.fullmatch(part.strip()) for part in line[match.end() :].split(" - "))
        return int(match[1]), {pair["key"]: float(pair["value"]) for pair in pairs if pair}
    return 0, {}


def charts(logs: dict[str, dict[str, Points]], colours: dict[str, int]) -> list[dict]:
    """The charts to show, from logs by name (see ``read_log``): one a metric, with every log that has it.

    ``colours`` has the number of each log's colour among the page's (``--c0`` …).
    """
    keys = sorted({key for metrics in logs.values() for key in metrics})
    notes: dict[str, str] = {}  # of each metric the first that fits
    for pattern, note in PANELS.items():
        notes |= {key: note for key in keys if re.fullmatch(pattern, key) and key not in notes}
    of = {key: {name: metrics[key] for name, metrics in logs.items() if key in metrics} for key in notes}
    return [{"metric": key, "note": notes[key], "series": of[key], "svg": _drawn(of[key], colours)} for key in notes]


def _drawn(series: dict[str, Points], colours: dict[str, int]) -> str:
    """An ``<svg>`` in the page's own font and colours: variables of CSS, for which others stand while it is drawn."""
    figure = Figure(figsize=(4.7, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(axis="y", color="#0000ff", clip_on=False)
    axes.locator_params(nbins=5)
    axes.ticklabel_format(useOffset=False)  # values near 1 as they are
    axes.xaxis.get_major_locator().set_params(integer=True)
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), color=f"#10000{colours[name]}", marker=".", clip_on=False)
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(file, format="svg", transparent=True, metadata=NO_METADATA)
    _, tag, svg = file.getvalue().partition("<svg")
    return re.sub(r"#10000(\d)", r"var(--c\1)", tag + svg).replace("#0000ff", "var(--line)")
