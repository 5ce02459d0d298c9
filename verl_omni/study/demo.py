"""The whole study on the demo corpus, on a CPU, each stage by the command a user types.

Corpus and tiny model, cold start, labels-only baseline, GRPO from the cold start, evaluation of the models with each
sense taken away, report. A stage whose result exists is not run again; a stage that was killed goes on from its last
checkpoint. Variants of GRPO (recipes such as ``explanation`` or ``dapo``) are trained beside it on demand, from the
same cold start.
"""

import json
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from rich.table import Table

from verl_omni.checkpoints import latest
from verl_omni.cli.tables import make_table
from verl_omni.evaluation.results import VARIANTS
from verl_omni.report.curves import read_log
from verl_omni.study.stages import execute, last_step

# Model family -> the name of its untrained model in the table and the report, and what its recipes' names have.
FAMILIES = {"humanomni": ("HumanOmni-base", ""), "qwen2_5_omni": ("Qwen2.5-Omni-base", "_qwen2_5_omni")}
MODELS = {"EMER-SFT": "emer_sft{}_cpu", "MAFW-DFEW-SFT": "mafw_dfew_sft{}_cpu", "R1-Omni": "r1omni{}_cpu"}


@dataclass
class Demo:
    """Where the demo's files are, and how its stages are run."""

    out: Path  # folder of everything the demo makes
    seed: int  # of the corpus, the tiny model and the trainers
    overrides: list[str]  # Hydra's, for the GRPO stages, as on their command line
    variants: list[str] = field(default_factory=list)  # recipes that change GRPO; each makes a model of its own
    family: str = "humanomni"  # of `FAMILIES`

    @property
    def models(self) -> dict[str, str | None]:
        """Name -> recipe of each model (None: as it comes), the variants' last."""
        base, suffix = FAMILIES[self.family]
        recipes = {name: recipe.format(suffix) for name, recipe in MODELS.items()}
        return {base: None} | recipes | {f"R1-Omni+{v}": f"[{recipes['R1-Omni']},{v}]" for v in self.variants}

    @property
    def data(self) -> Path:
        return self.out / "data"

    def checkpoints(self, name: str) -> Path:
        return self.out / "checkpoints" / name

    def model(self, name: str) -> Path:
        """Directory of the base, or of a model whose training has ended, in transformers' format."""
        return self.out / "base" if self.models[name] is None else latest(self.checkpoints(name))

    def prepare(self) -> None:
        if (self.data / "test.parquet").is_file() and (self.out / "base" / "config.json").is_file():
            return
        from verl_omni.corpora.demo import build_demo
        from verl_omni.models.families import load

        build_demo(self.data, seed=self.seed)
        load(self.family).build_tiny(self.out / "base", seed=self.seed)

    def supervised(self, name: str, rows: str) -> None:
        """Fine-tune the base with verl's SFT trainer."""
        command = [
            *("-m", "verl.trainer.sft_trainer", f"+recipe={self.models[name]}", f"trainer.seed={self.seed}"),
            *(f"model.path={self.out / 'base'}", f"data.train_files=[{self.data / rows}]"),
            f"trainer.default_local_dir={self.checkpoints(name)}",
        ]
        # One process, alone on the machine if nobody else works there: threads that wait for each other in a loop would
        # then take five times as long. This small, a model gains nothing by more than four.
        threads = str(min(os.cpu_count() or 1, 4))
        self.train(name, command, OMP_NUM_THREADS=threads, OMP_WAIT_POLICY="PASSIVE")

    def reinforce(self, name: str) -> None:
        """GRPO from the cold start (without reasoning: from the bare labels) with verl's PPO trainer."""
        start = "MAFW-DFEW-SFT" if name.endswith("no_think") else "EMER-SFT"
        command = [
            *("-m", "verl.trainer.main_ppo", f"+recipe={self.models[name]}", f"data.seed={self.seed}"),
            f"actor_rollout_ref.model.path={self.model(start)}",
            f"actor_rollout_ref.rollout.seed={self.seed}",
            f"data.train_files=[{self.data / 'train.parquet'}]",
            f"data.val_files=[{self.data / 'test.parquet'}]",
            f"trainer.default_local_dir={self.checkpoints(name)}",
            *self.overrides,
        ]
        self.train(name, command)

    def train(self, name: str, command: list[str], **environment: str) -> None:
        finished = self.checkpoints(name) / "finished"
        if finished.is_file():
            return
        logs = self.out / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        attempt = len(list(logs.glob(f"{name}.*.jsonl"))) + 1  # verl starts its metrics file anew when it resumes
        metrics = logs / f"{name}.{attempt}.jsonl"
        metrics.touch()
        environment["VERL_FILE_LOGGER_PATH"] = str(metrics)
        execute(name, command, logs / f"{name}.{attempt}.log", environment, partial(last_step, metrics))
        finished.touch()

    def evaluate(self, name: str) -> None:
        results = self.out / "results"
        command = [
            *("-m", "verl_omni", "evaluate", str(self.model(name)), "--name", name, "--out", str(results)),
            *("--data", str(self.data / "test.parquet"), "--modality-ablation", "--max-tokens", "48"),
            *("--max-model-len", "304"),
        ]
        answers, log = results / f"{name}.jsonl", self.out / "logs" / f"evaluate-{name}.log"
        answers.parent.mkdir(exist_ok=True)
        answers.touch()  # its lines are counted from the start
        execute(f"evaluate {name}", command, log, {}, lambda: answers.read_bytes().count(b"\n"))

    def report(self) -> None:
        results = [str(self.out / "results" / f"{name}.jsonl") for name in self.models]
        logs = sorted(str(path) for path in (self.out / "logs").glob("*.jsonl"))
        command = ["-m", "verl_omni", "report", *results, "--logs", *logs, "--out", str(self.out / "report.html")]
        execute("report", command, self.out / "logs" / "report.log", {}, None)


def summary(demo: Demo) -> Table:
    """Accuracy, UAR and format rate of the models, accuracy without each sense, in %; explanations; variants' cost."""

    def row(name: str) -> list[str]:
        scores = json.loads((demo.out / "results" / f"{name}.scores.json").read_text())
        by_variant = {score["variant"]: score for score in scores}
        normal, blanked, muted = (by_variant[variant] for variant in VARIANTS)
        shares = [normal["war"], normal["uar"], normal["format_rate"], blanked["war"], muted["war"], normal["epc"]]
        other = f"{normal['consistency'].get('contradicting', 0)} of {normal['rows']}"
        costs = cost(demo.out, name) if demo.variants else []
        return [name, *map("{:.1f}".format, shares), other, *map("{:.1f}".format, costs)]

    columns = ["model", "accuracy", "UAR", "format", "without video", "without sound", "EPC", "other emotion"]
    columns += ["tokens", "s a step"] * bool(demo.variants)
    title = "held-out clips, in %; explanations that name another emotion than the answer"
    return make_table(columns, map(row, demo.models), left=("model",), title=title)


def cost(out: Path, name: str) -> list[float]:
    """Tokens an answer at the end, and the median step's seconds; nothing for a model that GRPO did not train."""
    metrics = read_log(*sorted((out / "logs").glob(f"{name}.*.jsonl")))  # of a run that was resumed, all its parts
    if "response_length/mean" not in metrics:
        return []
    return [metrics["response_length/mean"][-1][1], median(seconds for _, seconds in metrics["timing_s/step"])]


def run_stages(demo: Demo) -> None:
    demo.prepare()
    demo.supervised("EMER-SFT", "sft.parquet")
    demo.supervised("MAFW-DFEW-SFT", "train_sft.parquet")
    for name in demo.models:
        if name.startswith("R1-Omni"):
            demo.reinforce(name)
    for name in demo.models:
        demo.evaluate(name)
    demo.report()
