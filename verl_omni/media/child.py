"""Decoding in a process that may die: damaged files make native decoders abort, which no ``except`` catches.

    with closing(Children()) as children:
        children.call(read_video, path, 8)    # MediaError also where the decoder crashes or hangs

A pool of the standard library's breaks as a whole when a worker dies, doesn't say on which file, and imports the
caller's main module into each worker, which for a trainer is seconds and gigabytes.
"""

import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from queue import Empty, SimpleQueue
from typing import Any

from verl_omni.media.errors import REPLACE, MediaError, named

SECONDS = 600  # for one file; more is a hang
ADDRESS_SPACE = 8 * 2**30  # bytes; a header that claims a picture of 100 GB is refused, not swapped for
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # children are many


class Child:
    """One process, for one call at a time."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115  (loud about damage; the last line says what kills it)
        command = [sys.executable, "-m", "verl_omni.media.child", str(theirs.fileno())]
        self.process = subprocess.Popen(
            command, env=os.environ | ONE_THREAD, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=self.stderr,
        )  # fmt: skip
        theirs.close()

    def cause_of_death(self) -> str:
        status = self.process.wait()
        self.stderr.seek(0)
        last_words = self.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
        return ", ".join([signal.Signals(-status).name if status < 0 else f"exit status {status}", *last_words])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()
        self.stderr.close()


class Children:
    """As many children as there are calls at a time, from any thread; one that died is replaced."""

    def __init__(self) -> None:
        self.idle: SimpleQueue[Child] = SimpleQueue()

    def call(self, function: Callable, source: Any, *args: Any, seconds: float = SECONDS) -> Any:
        """``function(source, *args)``, computed in a child; ``MediaError`` if that dies of it or takes too long."""
        try:
            child = self.idle.get_nowait()
        except Empty:
            child = Child()
        try:
            child.connection.send((function, source, *args))
            if not child.connection.poll(seconds):
                raise TimeoutError
            value, error = child.connection.recv()
        except (EOFError, OSError) as end:  # TimeoutError is an OSError
            hangs = isinstance(end, TimeoutError)
            problem = f"hangs (no end after {seconds} s)" if hangs else f"crashes ({child.cause_of_death()})"
            child.close()
            raise MediaError(f"{named(source)}: the decoder {problem}; {REPLACE}") from end
        self.idle.put(child)
        if error is not None:
            raise error
        return value

    def close(self) -> None:
        while not self.idle.empty():
            self.idle.get().close()


def answer_calls(connection: Connection) -> None:
    """In the child, until the other end closes."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    while True:
        try:
            function, *args = connection.recv()
        except EOFError:
            return
        try:
            value, problem = function(*args), None
        except Exception as error:
            value, problem = None, error
        connection.send((value, problem))


if __name__ == "__main__":
    answer_calls(Connection(int(sys.argv[1])))
