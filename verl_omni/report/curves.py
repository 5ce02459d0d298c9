"""Training curves from verl's logs, as inline SVG.

Read are the ``file`` tracker's JSON lines, ``{"step": 1, "data": {"critic/rewards/mean": 0.5, …}}``
(``verl/utils/tracking.py``, ``trainer.logger=[file]``), and the ``console`` tracker's lines, ``step:1 - key:value - …``
(``verl/utils/logger/aggregate_logger.py``).
"""

import json
import math
import re
from contextlib import suppress
from itertools import chain
from pathlib import Path
from statistics import fmean

import yaml
from matplotlib.ticker import MaxNLocator

from verl_omni.errors import InputError

PANELS: dict[str, str] = yaml.safe_load(Path(__file__).with_name("panels.yaml").read_text(encoding="utf-8"))
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RECALL = re.compile(r"(?P<corpus>val-\w+/.+)/recall/[^/]+/mean@\d+")  # of the reward manager `accuracy_format`
CONSOLE = re.compile(r"\bstep:(\d+) - ")
CONSOLE_PAIR = re.compile(rf"(?P<key>[^\s:]+):(?:np\.\w+\()?(?P<value>{NUMBER})\)?$")

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 190, 46, 12, 10, 24


class LogError(InputError):
    """A log without a training step in it."""


Points = list[tuple[int, float]]  # a metric's (step, value)


def read_log(*paths: str | Path) -> dict[str, Points]:
    """Points of every metric of a log, UAR among them; ``LogError`` without any. Several are a resumed run's parts."""
    points: dict[str, dict[int, float]] = {}
    recalls: dict[tuple[str, int], list[float]] = {}
    for line in (line for path in paths for line in Path(path).read_text("utf-8", "replace").splitlines()):
        step, data = _step_of(line)
        for key, value in data.items():
            if math.isfinite(value):
                points.setdefault(key, {})[step] = value
    if paths and not points:
        found = f"{', '.join(map(str, paths))}: no training step found"
        raise LogError(f"{found}; expected verl's `file` tracker (jsonl) or its console output")
    for key in points:  # verl logs means over rows, which UAR is not: it is the mean of the classes' recalls
        if match := RECALL.fullmatch(key):
            for step, value in points[key].items():
                recalls.setdefault((f"{match['corpus']}/UAR", step), []).append(value)
    for (key, step), values in recalls.items():
        points.setdefault(key, {})[step] = fmean(values)
    return {key: sorted(values.items()) for key, values in points.items()}


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


def charts(logs: dict[str, dict[str, Points]]) -> list[dict]:
    """The charts to draw, from logs by name (see ``read_log``): one a metric, with every log that has it."""
    keys = sorted({key for metrics in logs.values() for key in metrics})
    notes: dict[str, str] = {}  # of each metric the first that fits
    for pattern, note in PANELS.items():
        notes |= {key: note for key in keys if re.fullmatch(pattern, key) and key not in notes}
    of = {key: {name: metrics[key] for name, metrics in logs.items() if key in metrics} for key in notes}
    return [{"metric": key, "note": note} | _drawn(of[key]) for key, note in notes.items()]


def _drawn(series: dict[str, Points]) -> dict:
    """What the template draws: ticks, grid and one path per series, in SVG units."""
    steps, values = zip(*chain.from_iterable(series.values()), strict=True)
    x_low, x_high = min(steps), max(max(steps), min(steps) + 1)
    x_ticks = _ticks(x_low, x_high, integer=True)
    y_ticks = _ticks(min(values), max(values))
    y_low, y_high = min(y_ticks), max(y_ticks)

    def x(step: float) -> float:
        return round(LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    return {
        "x_ticks": [(x(tick), f"{tick:g}") for tick in x_ticks if x_low <= tick <= x_high],
        "y_ticks": [(y(tick), f"{tick:.8g}") for tick in y_ticks],
        "series": [
            {
                "name": name,
                "path": "M" + "L".join(f"{x(step)},{y(value)}" for step, value in points),
                "points": [(x(step), y(value)) for step, value in points] if len(points) <= 40 else [],
                "last": f"{points[-1][1]:.4g}",
                "steps": len(points),
            }
            for name, points in series.items()
        ],
    }


def _ticks(low: float, high: float, integer: bool = False) -> list[float]:
    if low == high:
        low, high = low - 0.05 * abs(low), high + (0.05 * abs(high) or 1.0)
    return [float(tick) for tick in MaxNLocator(nbins=5, integer=integer).tick_values(low, high)]
