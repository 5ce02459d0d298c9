"""What a file is put through before a training depends on it: more than reading it, which hides some damage.

Call these in a child (``verl_omni.media.child``): damage makes decoders crash.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av.logging
import numpy as np
from PIL import Image, ImageSequence

from verl_omni.media.audio import SHORTEST_SECONDS, announced_seconds, check_length, no_sound, read_audio, sound_track
from verl_omni.media.container import DamagedError, check_whole, open_container
from verl_omni.media.errors import DamagedAudioError, existing, media_boundary
from verl_omni.media.resize import HUMANOMNI, FrameFormat
from verl_omni.media.video import VideoSource, read_video

MISSING_SHARE = 0.1  # of the frames announced; headers round


def check_exists(source: VideoSource) -> None:
    """Raise ``MediaError`` unless ``source`` is a file with something in it, a folder, or a list of such files."""
    for part in [source] if isinstance(source, str | os.PathLike) else source:
        existing(part)


@media_boundary("no sound that can be opened", DamagedAudioError)
def check_sound_starts(source: str | os.PathLike) -> None:
    """Raise what ``read_audio`` raises of a missing or cut file and of one without sound; only the start is decoded."""
    path = existing(source)
    check_whole(path)
    seconds = 0.0
    with open_container(path) as container:
        for frame in container.decode(sound_track(container, path)):
            seconds += frame.samples / frame.sample_rate
            if seconds >= SHORTEST_SECONDS:
                return
    raise no_sound(path, seconds)


@media_boundary("the sound does not decode", DamagedAudioError)
def check_audio(source: str | os.PathLike, sampling_rate: int = 16000) -> np.ndarray:
    """``read_audio``, which decodes a whole track; skipped bytes are damage, too."""
    with demuxer_errors_raised(source):
        return read_audio(source, sampling_rate)


@media_boundary("the video does not decode")
def check_video(source: VideoSource, num_frames: int = 8, frame_format: FrameFormat = HUMANOMNI) -> np.ndarray:
    """Frames as ``read_frames`` gives them; ``MediaError`` also if one between them is damaged or missing.

    Damage within a frame is found where its codec reports it: H.264, HEVC and MPEG-4 often do, VP8 and VP9 never.
    """
    frames = frame_format.apply(read_video(source, num_frames))
    if not isinstance(source, str | os.PathLike) or Path(source).is_dir():
        return frames
    if Path(source).suffix.lower() == ".gif":
        with Image.open(source) as gif:
            for frame in ImageSequence.Iterator(gif):
                frame.load()
    else:
        with demuxer_errors_raised(source):
            _decode_all(source)
    return frames


@contextmanager
def demuxer_errors_raised(source: str | os.PathLike) -> Iterator[None]:
    """Raise ``DamagedError`` for what a demuxer of FFmpeg logs as an error before it looks for the next intact part.

    What decoders log is left to them: they do so for clips that were cut without encoding anew, too.
    """
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    with av.logging.Capture() as logs:
        yield
    with open_container(source) as container:
        demuxer = container.format.name
    complaints = [text.strip() for _, name, text in logs if name == demuxer]
    if complaints:
        raise DamagedError(complaints[0])


def _decode_all(source: str | os.PathLike) -> None:
    packets, end, start = 0, 0, None
    with open_container(source) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1  # files are checked in parallel
        for packet in container.demux(stream):
            if packet.is_corrupt or any(frame.is_corrupt for frame in packet.decode()):
                raise DamagedError(f"packet {packets} is damaged")
            if packet.pts is not None:
                packets, end = packets + 1, max(end, packet.pts + (packet.duration or 0))
                start = packet.pts if start is None else min(start, packet.pts)
        if packets < (1 - MISSING_SHARE) * stream.frames:
            raise DamagedError(f"{stream.frames} frames announced, {packets} found")
        check_length(announced_seconds(stream), float((end - (start or 0)) * stream.time_base), "video")
