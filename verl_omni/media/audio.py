"""Mono waveform from a video file's sound track or from an audio file."""

import os
from math import ceil
from pathlib import Path

import av
import numpy as np
import soundfile
from av.audio.stream import AudioStream
from av.container import InputContainer

from verl_omni.media.container import DamagedError, check_whole, open_container
from verl_omni.media.errors import DamagedAudioError, EmptyAudioError, NoAudioError, existing, media_boundary

# Headers round; what a cut file lacks is more than this share and this long.
MISSING_SHARE, MISSING_SECONDS = 0.1, 0.5
SHORTEST_SECONDS = 0.025  # a window of Whisper's spectrum
# Formats that announce no length, for which FFmpeg makes one up; AVI does, but of ADPCM a thousand times too much.
GUESSED_LENGTH = {"aac", "ac3", "avi", "mp3", "mpeg", "mpegts"}
SOUND_FILES = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"}  # read by libsndfile


@media_boundary("the sound does not decode", DamagedAudioError)
def read_audio(source: str | os.PathLike, sampling_rate: int = 16000) -> np.ndarray:
    """Return the sound of ``source``, mixed to mono, as float32 ``[samples]`` at ``sampling_rate`` Hz.

    Formats that libsndfile reads (wav, flac, ogg, mp3, ...) are decoded by it, and their channels averaged. All others
    are decoded by FFmpeg, through PyAV, to the samples that R1-Omni gets from decord: mixed by FFmpeg's matrix, which
    is not normalised (mono stays within -1..1, loud stereo reaches 1.4, loud 5.1 more), see ``resample``.

    Raises:
        NoAudioError: no track; ``EmptyAudioError``: nothing in it; ``DamagedAudioError``: damaged or cut short.
        MediaError: the file is missing, empty, or nothing that decodes.
    """
    path = existing(source)
    check_whole(path)
    if path.suffix.lower() in SOUND_FILES:
        with soundfile.SoundFile(path) as file:
            rate, announced = file.samplerate, file.frames / file.samplerate
            wave = file.read(dtype="float32", always_2d=True).mean(axis=1)  # [samples, channels] -> [samples]
        seconds = len(wave) / rate
        if rate != sampling_rate and len(wave):
            from scipy.signal import resample_poly  # four fifths of what a decoding child's start takes

            wave = resample_poly(wave, sampling_rate, rate).astype(np.float32)
    else:
        with open_container(path) as container:
            track = sound_track(container, path)
            announced, rate = announced_seconds(track), track.rate
            mono = av.AudioResampler(format="fltp", layout="mono", rate=rate)
            frames: list[np.ndarray] = []  # each float32 [samples]
            for frame in container.decode(track):
                if frame.is_corrupt:
                    raise DamagedError("a frame is damaged")
                frames += [part.to_ndarray()[0] for part in mono.resample(frame)]
        seconds = sum(map(len, frames)) / rate
        wave = resample(frames, rate, sampling_rate) if frames else np.zeros(0, np.float32)
    if seconds < SHORTEST_SECONDS:
        raise no_sound(path, seconds)
    check_length(announced, seconds, "sound")
    if not np.isfinite(wave).all():
        raise ValueError("NaN or infinity in it")
    return wave


def sound_track(container: InputContainer, path: Path) -> AudioStream:
    """The audio track that is heard; raises ``NoAudioError`` if there is none."""
    if not container.streams.audio:
        raise NoAudioError(f"{path}: no audio track; give its rows no audio, or supply the sound as a file")
    return container.streams.best("audio")


def no_sound(path: Path, seconds: float) -> EmptyAudioError:
    return EmptyAudioError(f"{path}: its audio track has {seconds * 1000:.0f} ms of sound; give its rows no audio")


def announced_seconds(stream: AudioStream) -> float:
    """A stream's length by the file's headers; 0 where they have none."""
    if stream.container.format.name in GUESSED_LENGTH:
        return 0.0
    if stream.duration:
        return float(stream.duration * stream.time_base)
    hours, minutes, seconds = stream.metadata.get("DURATION", "0:0:0").split(":")  # Matroska's tag
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def check_length(announced: float, seconds: float, what: str) -> None:
    """Raise ``DamagedError`` if less decodes than announced: decoders stop at damage without an error."""
    if announced - seconds > max(MISSING_SECONDS, MISSING_SHARE * announced):
        raise DamagedError(f"{announced:.1f} s of {what} announced, {seconds:.1f} s found")


def resample(frames: list[np.ndarray], rate: int, sampling_rate: int) -> np.ndarray:
    """Resample as decord has FFmpeg do it, so that models trained on R1-Omni's data hear the same samples.

    decord flushes FFmpeg's resampler after the first frame of a track, which then goes on behind the end of that frame
    mirrored: half a filter's length, 1 ms. What follows is late by so much, and the end lacks it.
    """
    if rate == sampling_rate:
        return np.concatenate(frames)
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=sampling_rate)

    def feed(samples: np.ndarray) -> np.ndarray:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
        frame.sample_rate = rate
        return np.concatenate([np.zeros(0, np.float32), *(part.to_ndarray()[0] for part in resampler.resample(frame))])

    first, *others = frames
    start = feed(first)
    # FFmpeg's defaults: 32 taps, more of them below a cutoff of 0.97. It mirrors half of what no output has used up.
    taps = ceil(32 / min(sampling_rate * 0.97 / rate, 1))
    left = len(first) - len(start) * rate // sampling_rate + (taps - 1) // 2
    mirrored = first[::-1][: (min(left, taps) + 1) // 2]
    return np.concatenate([start, feed(np.concatenate([mirrored, *others]))])
