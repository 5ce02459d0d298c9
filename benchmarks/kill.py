"""``python -m benchmarks.kill``: trainers killed at seeded moments, and what the same command makes of it.

One GRPO run and one supervised run of the demo's tiny model, a checkpoint each step. Each attempt is killed at a moment
drawn at random, and the next attempt, by the same command, must go on after the last checkpoint; the last one runs to
the end, and its export must load. Prints a table of moments and outcomes, and fails if one is not as it should be.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

VICTIMS = {  # what is killed -> part of its process' title; None: the process group of the command
    "group": None,
    "FSDP worker": "ray::WorkerDict",
    "vLLM server": "ray::vLLMHttpServer",
    "vLLM engine": "VLLM::EngineCor",
    "raylet": "raylet",
}
MOMENTS = ("start-up", "step", "checkpoint")
PATIENCE = 150  # s for a trainer to notice that a part of it has died, and to end


@dataclass
class Attempt:
    """One start of the trainer, and how it ended."""

    trainer: str
    moment: str
    victim: str
    killed_after: float = 0.0  # s
    resumed_from: int = 0
    first_step: int | None = None
    last_checkpoint: int = 0
    half_written: bool = False  # there was a newer checkpoint folder than the one on record
    ended: str = ""
    left_behind: list[str] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """Was met by its kill, went on after the checkpoint that it found, ended by itself, and left nothing behind."""
        resumed = self.first_step in (None, self.resumed_from + 1) and self.last_checkpoint >= self.resumed_from
        ended = self.ended != "hung" and self.ended.startswith("status 0") == (self.victim == "-")
        return resumed and ended and not self.left_behind


@dataclass(frozen=True)
class Trainer:
    """A command of verl, and where its checkpoints lie."""

    name: str
    folder: Path
    command: list[str]

    @property
    def checkpoints(self) -> Path:
        return self.folder / self.name

    @property
    def metrics(self) -> Path:
        return self.folder / f"{self.name}.jsonl"

    def last_checkpoint(self) -> int:
        """The step on record, 0 before the first."""
        tracker = self.checkpoints / "latest_checkpointed_iteration.txt"
        if not tracker.is_file():
            return 0
        return int(tracker.read_text() or self.newest_folder())  # GRPO's trainer empties it before it writes to it

    def newest_folder(self) -> int:
        return max((int(path.name.rsplit("_", 1)[1]) for path in self.checkpoints.glob("global_step_*")), default=0)

    def steps(self) -> list[int]:
        """Steps that this attempt has finished; verl starts the file anew at each start."""
        lines = self.metrics.read_bytes().splitlines(keepends=True) if self.metrics.is_file() else []
        return [json.loads(line)["step"] for line in lines if line.endswith(b"\n")]

    def start(self) -> subprocess.Popen:
        self.metrics.unlink(missing_ok=True)
        environment = {**os.environ, "VERL_FILE_LOGGER_PATH": str(self.metrics)}
        log = (self.folder / f"{self.name}.log").open("ab")
        return subprocess.Popen(
            self.command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def trainers(folder: Path, steps: int) -> dict[str, Trainer]:
    """GRPO and supervised fine-tuning on a few demo clips; a step takes seconds."""
    from verl_omni.corpora.demo import build_demo
    from verl_omni.models.humanomni.tiny import build_tiny

    data, model = build_demo(folder / "data", n_train=64, n_test=4, n_sft=16), build_tiny(folder / "base")
    common = f"trainer.total_training_steps={steps}", "trainer.save_freq=1", "trainer.test_freq=-1"
    grpo = [
        *("verl.trainer.main_ppo", "+recipe=r1omni_cpu", f"actor_rollout_ref.model.path={model}"),
        *(f"data.train_files=[{data['train']}]", f"data.val_files=[{data['test']}]", "trainer.val_before_train=false"),
        *("data.train_batch_size=2", "actor_rollout_ref.actor.ppo_mini_batch_size=2", "trainer.total_epochs=9"),
        *("actor_rollout_ref.rollout.n=4", "data.max_response_length=8"),
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
    ]
    supervised = [
        *("verl.trainer.sft_trainer", "+recipe=emer_sft_cpu", f"model.path={model}", "trainer.total_epochs=99"),
        *(f"data.train_files=[{data['sft']}]", "data.train_batch_size=8", "data.micro_batch_size_per_gpu=8"),
    ]
    made = {}
    for name, arguments in (("GRPO", grpo), ("SFT", supervised)):
        command = [sys.executable, "-m", *arguments, *common, f"trainer.default_local_dir={folder / name}"]
        made[name] = Trainer(name, folder, command)
    return made


def session_of(leader: int) -> Iterator[psutil.Process]:
    """Living processes of a session; Ray's daemons leave the trainer's group, but not its session."""
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.NoSuchProcess:
        return ""


def wait_until(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        if time.monotonic() > deadline:
            for left in list(session_of(process.pid)):
                left.kill()
            raise TimeoutError(f"the moment to kill did not come within {seconds} s")
        time.sleep(0.02)


def attempt(trainer: Trainer, moment: str, victim: str, chance: random.Random) -> Attempt:
    """Start a trainer, kill it or a part of it at a moment, and wait for its end."""
    record = Attempt(trainer.name, moment, victim, resumed_from=trainer.last_checkpoint())
    shared_memory = set(os.listdir("/dev/shm"))
    started, process = time.monotonic(), trainer.start()
    if moment == "start-up":
        part = VICTIMS[victim]
        wait_until(lambda: part is None or any(part in title(p) for p in session_of(process.pid)), process)
        time.sleep(chance.uniform(0, 20))
    else:
        at_checkpoint = moment == "checkpoint"
        reached = trainer.newest_folder if at_checkpoint else trainer.last_checkpoint
        goal = reached() + chance.randint(1, 2)  # beyond a folder that an earlier kill has left half written
        wait_until(lambda: reached() >= goal, process)
        time.sleep(chance.uniform(0, 0.4 if at_checkpoint else 3))
    if process.poll() is None:
        strike(process.pid, victim)
    record.killed_after = time.monotonic() - started
    record.ended = end(process)
    steps = trainer.steps()
    record.first_step = steps[0] if steps else None
    record.last_checkpoint = trainer.last_checkpoint()
    record.half_written = trainer.newest_folder() > record.last_checkpoint
    record.left_behind = left_behind(process.pid, shared_memory)
    return record


def strike(leader: int, victim: str) -> None:
    part = VICTIMS[victim]
    if part is None:
        os.killpg(leader, signal.SIGKILL)
        return
    for process in list(session_of(leader)):
        if part in title(process).split("--")[0]:
            process.kill()


def end(process: subprocess.Popen) -> str:
    """How the trainer ends after a part of it was killed."""
    started = time.monotonic()
    try:
        status = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        for left in list(session_of(process.pid)):
            left.kill()
        process.wait()
        return "hung"
    return f"{'killed' if status < 0 else f'status {status}'} after {time.monotonic() - started:.0f} s"


def left_behind(leader: int, shared_memory: set[str]) -> list[str]:
    """Processes that live on 15 s after the trainer, which are then ended, and new, unused files in /dev/shm."""
    deadline = time.monotonic() + 15
    while (living := list(session_of(leader))) and time.monotonic() < deadline:
        time.sleep(0.5)
    found = sorted({title(process).split()[0] for process in living if title(process)})
    for process in living:
        process.kill()
    new = {f"/dev/shm/{name}" for name in set(os.listdir("/dev/shm")) - shared_memory}
    return found + sorted(new - mapped_files())


def mapped_files() -> set[str]:
    """Files that some process has mapped, those in /dev/shm of other trainings on this machine among them."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found |= {region.path for region in process.memory_maps()}
    return found


def finish(trainer: Trainer) -> Attempt:
    """The same command to the end; its export must load."""
    from transformers import AutoModelForCausalLM

    import verl_omni.models  # noqa: F401  (registers the model)

    record = Attempt(trainer.name, "-", "-", resumed_from=trainer.last_checkpoint())
    shared_memory = set(os.listdir("/dev/shm"))
    started, process = time.monotonic(), trainer.start()
    status = process.wait(1200)
    record.ended = f"status {status} after {time.monotonic() - started:.0f} s"
    record.first_step, record.last_checkpoint = (trainer.steps() or [None])[0], trainer.last_checkpoint()
    record.left_behind = left_behind(process.pid, shared_memory)
    last = trainer.checkpoints / f"global_step_{record.last_checkpoint}"
    export = next(path for path in (last / "actor" / "huggingface", last / "huggingface") if path.is_dir())
    AutoModelForCausalLM.from_pretrained(export)
    record.ended += ", the export loads"
    return record


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/kill"), help="folder; goes on with what is in it")
    parser.add_argument("--kills", type=int, default=20, help="all in all, three quarters of them of GRPO (default 20)")
    parser.add_argument("--at-once", type=int, default=20, help="attempts in this call; the next goes on after them")
    parser.add_argument("--trainers", nargs="+", choices=("GRPO", "SFT"), default=("GRPO", "SFT"), help="default: both")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out = args.out.resolve()
    made, records = trainers(out, 2 * args.kills), out / "attempts.jsonl"  # an attempt takes two steps or so
    done = len(records.read_text().splitlines()) if records.is_file() else 0
    chance = random.Random(args.seed)
    plan = []
    for number in range(args.kills):
        name = "SFT" if number % 4 == 3 else "GRPO"
        victim = "group" if name == "SFT" else list(VICTIMS)[number % len(VICTIMS)]
        plan.append((made[name], chance.choice(MOMENTS), victim, random.Random(chance.random())))
    plan = [(trainer, *rest) for trainer, *rest in plan if trainer.name in args.trainers]
    with records.open("a") as file:
        for trainer, *rest in track(plan[done : done + args.at_once], "kills"):
            file.write(json.dumps(asdict(attempt(trainer, *rest))) + "\n")
            file.flush()
        if len(plan) - args.at_once <= done <= len(plan):
            chosen = (made[name] for name in args.trainers)
            file.writelines(json.dumps(asdict(finish(trainer))) + "\n" for trainer in chosen)
    return show([Attempt(**json.loads(line)) for line in records.read_text().splitlines()])


def show(attempts: list[Attempt]) -> int:
    columns = ("trainer", "moment", "killed", "s", "found", "first step", "checkpoint", "half", "ended", "left behind")
    table = Table(*columns, title=f"{len(attempts)} attempts, one after the other")
    for a in attempts:
        cells = (a.trainer, a.moment, a.victim, f"{a.killed_after:.1f}", a.resumed_from, a.first_step)
        cells += (a.last_checkpoint, "yes" if a.half_written else "", a.ended, "\n".join(a.left_behind))
        table.add_row(*map(str, cells), style=None if a.right else "red")
    Console(width=160).print(table)
    return int(not all(a.right for a in attempts))


if __name__ == "__main__":
    raise SystemExit(main())
