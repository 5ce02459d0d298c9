"""A command as a stage of something longer: output in a log, a line of progress on the screen, a loud end."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from rich.progress import Progress, TextColumn, TimeElapsedColumn


class StageError(RuntimeError):
    """A stage's command failed; the message ends with the end of its log."""


def steps_in(metrics: Path) -> Callable[[], int]:
    """A function that reads the last training step from verl's metrics file."""

    def last_step() -> int:
        lines = metrics.read_bytes().splitlines(keepends=True)
        complete = [line for line in lines if line.endswith(b"\n")]
        return json.loads(complete[-1])["step"] if complete else 0

    return last_step


def execute(name: str, command: list[str], log: Path, environment: dict, done: Callable[[], int] | None) -> None:
    """Run ``python command``, its output in ``log``, with a line of progress that counts what ``done`` returns."""
    log.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description:26}"), TextColumn("{task.fields[count]}"), TimeElapsedColumn())
    with log.open("wb") as output, Progress(*columns) as progress:
        task = progress.add_task(name, total=None, count="starting")
        try:
            process = subprocess.Popen(
                [sys.executable, *command], stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment
            )
            while process.poll() is None:
                if done and (count := done()):
                    progress.update(task, count=f"{count} done")
                time.sleep(0.5)
        except BaseException:  # Ctrl-C: the trainer must not run on without us, nor one that was just being started
            for child in psutil.Process().children():
                child.terminate()
                child.wait()
            raise
        progress.update(task, count=f"{done()} done" if done else "done")
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise StageError(f"{name}: exit status {process.returncode}; the end of {log}:\n{tail}")
