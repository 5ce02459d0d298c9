"""verl waits for ever where vLLM dies while it gets new weights: the trainer's side looks at its socket alone."""

import os
from concurrent.futures import Future
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import zmq

from verl_omni.adjustments import replaces
from verl_omni.plugin import RUN

ANSWERS: dict[str, Future] = {}  # socket's name -> the server's answer, which comes after the last weight


class WatchedSocket:
    """Waits as long as the server's answer is out: before the last reply it can only be an error, which is raised."""

    def __init__(self, socket: zmq.Socket, answer: Future):
        self.socket, self.answer = socket, answer
        self.message: object = None  # the last one sent
        socket.linger = 0  # what a dead server has not fetched would keep this process from its end

    def __getattr__(self, name: str) -> Any:
        return getattr(self.socket, name)

    def wait(self, event: int) -> None:
        while not self.socket.poll(1000, event):
            if self.answer.done() and not self.socket.poll(0, event):
                if isinstance(self.message, dict) and "name" in self.message:  # the first, whose buffer verl forgets
                    Path("/dev/shm", self.message["name"]).unlink()
                self.answer.result()
                raise RuntimeError("vLLM has ended its update of weights before it got them all")

    def send_pyobj(self, message: object) -> None:
        self.message = message
        self.wait(zmq.POLLOUT)
        self.socket.send_pyobj(message)

    def recv(self) -> bytes:
        self.wait(zmq.POLLIN)
        return self.socket.recv()


def notice_dead_receiver(vllm_rollout: ModuleType) -> None:
    """Let an update of weights end with the error of the server that should get them, in this package's runs alone."""
    if "answer" in signature(vllm_rollout.BucketedWeightSender).parameters:  # upstream does it
        return

    @replaces(vllm_rollout.ServerAdapter, "_execute_method")
    async def remember_answer(execute, adapter: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        answer = await execute(adapter, method, *args, **kwargs)
        if method == "update_weights_from_ipc" and answer is not None:  # None on ranks without a server of their own
            ANSWERS[adapter.zmq_handle] = answer.future()
        return answer

    @replaces(vllm_rollout.BucketedWeightSender, "_init_socket")
    def watch_socket(init_socket, sender: Any) -> None:
        init_socket(sender)
        answer = ANSWERS.pop(sender.zmq_handle, None)
        if RUN in os.environ and answer is not None:
            sender.socket = WatchedSocket(sender.socket, answer)
