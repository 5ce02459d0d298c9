"""What the original recorded of HumanOmni, clips without sound, and a server of vLLM: shared by tests."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from verl_omni.media import MediaError, read_audio, read_video
from verl_omni.media.write import write_clip

GPU = torch.cuda.is_available()
HARDWARE = [  # forms of one test: what a GPU alone shows, and its imitation on a CPU
    pytest.param("cpu", marks=pytest.mark.skipif(GPU, reason="the GPU's form runs")),
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="no GPU")]),
]
GOLDEN = Path(__file__).parent / "golden"
HUMANOMNI = GOLDEN / "humanomni"
TOWERS = {
    "vision": HUMANOMNI / "towers/siglip-tiny-patch8-32",
    "audio": HUMANOMNI / "towers/whisper-tiny-oracle",
    "bert": HUMANOMNI / "towers/bert-tiny-uncased",
}
CASES = {
    name: GOLDEN / case["file"] for name, case in json.loads((HUMANOMNI / "manifest.json").read_text())["cases"].items()
}
PATHS = [(case, path) for case in CASES for path in ("train", "infer")] + [("landscape", "infer_video")]
ORIGINAL_VIDEO, ORIGINAL_AUDIO = -201, -202
# The original hears ten seconds of silence where there is no sound.
SILENCE = np.zeros(160000, dtype=np.float32)


def frames_of(case: str) -> list[np.ndarray]:
    """The frames that the original saw: ours, but for short gifs, which it fills up with black frames of odd shapes."""
    frames = list(read_video(CASES[case]))
    if case != "gif5":
        return frames
    height, width, _ = frames[0].shape
    wide, tall = np.zeros((height, width, 3), np.uint8), np.zeros((width, height, 3), np.uint8)
    return [*(frames[i] for i in (0, 1, 3, 5, 7)), tall, wide, tall]


def sound(case: str) -> np.ndarray:
    try:
        return read_audio(CASES[case])
    except MediaError:
        return SILENCE


def soundless_clips(folder: Path) -> list[Path]:
    """A clip without an audio track, one whose track is empty, one whose track is shorter than a window."""
    frames = [np.full((64, 64, 3), 20 * index, np.uint8) for index in range(10)]
    with av.open(str(folder / "empty.mkv"), "w") as clip:
        video, _ = clip.add_stream("libx264", rate=10), clip.add_stream("aac", rate=44100, layout="mono")
        video.width = video.height = 64
        for frame in frames:
            clip.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        clip.mux(video.encode(None))
    instant = write_clip(folder / "instant.mp4", frames, np.zeros(100, np.float32), fps=10, sampling_rate=44100)
    return [GOLDEN / "clips" / "noaudio.mp4", folder / "empty.mkv", instant]


def cut_sound(source: Path, path: Path) -> Path:
    """Copy a clip with its sound's first eight packets only, the last of which claims two seconds more."""
    with av.open(str(source)) as clip, av.open(str(path), "w") as copy:
        picture, sound = (
            copy.add_stream_from_template(track) for track in (clip.streams.video[0], clip.streams.audio[0])
        )
        packets = [packet for packet in clip.demux(clip.streams.audio[0]) if packet.size][:8]
        packets[-1].duration += int(2 / packets[-1].time_base)
        clip.seek(0)
        for packet in packets + [packet for packet in clip.demux(clip.streams.video[0]) if packet.size]:
            packet.stream = picture if packet.stream.type == "video" else sound
            copy.mux(packet)
    return path


class Golden:
    """What the original recorded for one clip and one of its paths (``train``, ``infer``, ``infer_video``)."""

    def __init__(self, case: str, path: str):
        self.case = case
        self.meta = json.loads((HUMANOMNI / case / f"{path}.json").read_text())
        self.tensors = load_file(HUMANOMNI / case / f"{path}.safetensors")
        self.style, self.aspect_ratio = ("grpo", "pad") if path == "train" else ("infer", "squash")
        self.has_audio = path != "infer_video"
        # The text after the media's tags, which in these two paths is also what BERT reads.
        self.instruction = self.meta["bert_text"] if path == "train" else self.meta["question"]

    def chat(self) -> list[dict]:
        audio = [{"type": "audio", "audio": sound(self.case)}] if self.has_audio else []
        content = [{"type": "video", "video": frames_of(self.case)}, *audio, {"type": "text", "text": self.instruction}]
        return [{"role": "user", "content": content}]

    def inputs(self, processor) -> dict[str, torch.Tensor]:
        """What the model gets when our processor reads the clip itself."""
        return processor.apply_chat_template(
            self.chat(), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            prompt_style=self.style, aspect_ratio=self.aspect_ratio,
        )  # fmt: skip

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def expand(ids: torch.Tensor, config) -> torch.Tensor:
    """The original's ids ``[L]`` with our placeholders, one per feature vector."""
    runs = {
        ORIGINAL_VIDEO: [config.video_token_id] * config.num_video_tokens,
        ORIGINAL_AUDIO: [config.audio_token_id] * config.num_audio_tokens,
    }
    return torch.tensor([token for i in ids.tolist() for token in runs.get(i, [i])])


@contextmanager
def started(command: list[str], log: Path) -> Iterator[str]:
    """The address of a server of vLLM, by its command and a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address, port = free.getsockname()
    with log.open("w") as file:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 300
        while "startup complete" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(1)
        yield f"{address}:{port}"
    finally:
        process.terminate()
        process.wait(60)
