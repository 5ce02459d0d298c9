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


def last_step(metrics: Path) -> int:
    """The last training step in verl's metrics file, of whose last line perhaps half is written; 0 before the first."""
    *complete, _torn = metrics.read_bytes().split(b"\n")
    return json.loads(complete[-1])["step"] if complete else 0


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
