"""Mono waveform from a video file's sound track or from an audio file."""

import os
from pathlib import Path

import av
import decord
import numpy as np
import soundfile
from scipy.signal import resample_poly

from verl_omni.media.errors import REPLACE, MediaError, existing, reason

# Headers round; what a cut file lacks is more than this share and this long.
MISSING_SHARE, MISSING_SECONDS = 0.1, 0.5


class NoAudioError(MediaError):
    """A sound file was expected, but the file has no audio track."""


def read_audio(source: str | os.PathLike, sampling_rate: int = 16000) -> np.ndarray:
    """Return the sound of ``source``, mixed to mono, as float32 ``[samples]`` in -1..1 at ``sampling_rate`` Hz.

    Formats that libsndfile reads (wav, flac, ogg, mp3, ...) go through soundfile, everything else through decord,
    which R1-Omni uses; its resampler lags by about 16 samples when the source has another rate.

    Raises:
        NoAudioError: a video without an audio track.
        MediaError: the file is missing, empty, cut short, or does not decode.
    """
    path = existing(source)
    if path.suffix[1:].upper() in soundfile.available_formats():
        return _read_sound_file(path, sampling_rate)
    seconds = sound_track_seconds(path)
    try:
        wave = decord.AudioReader(str(path), sample_rate=sampling_rate, mono=True)[:].asnumpy()[0]
    except (RuntimeError, decord.DECORDError) as error:
        raise MediaError(f"{path}: the sound does not decode ({reason(error)}); {REPLACE}") from error
    _check_wave(wave, path)
    missing = seconds - len(wave) / sampling_rate
    if missing > max(MISSING_SECONDS, MISSING_SHARE * seconds):  # decord stops at damage without an error
        raise MediaError(
            f"{path}: {seconds:.1f} s of sound announced, {len(wave) / sampling_rate:.1f} s decode; {REPLACE}"
        )
    return wave


def sound_track_seconds(source: str | os.PathLike) -> float:
    """Return the sound track's length as the container announces it, 0 where it doesn't; nothing is decoded.

    Raises:
        NoAudioError: the container has no audio track.
        MediaError: the file is missing, empty, or no media file.
    """
    path = existing(source)
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise NoAudioError(f"{path}: no audio track; give its rows no audio, or supply the sound as a file")
            track = container.streams.audio[0]
            return float(track.duration * track.time_base) if track.duration else 0.0
    except (av.FFmpegError, IsADirectoryError) as error:
        raise MediaError(f"{path}: no media file that can be opened ({error.strerror}); {REPLACE}") from error


def _read_sound_file(path: Path, sampling_rate: int) -> np.ndarray:
    try:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)  # [samples, channels]
    except soundfile.LibsndfileError as error:
        raise MediaError(f"{path}: the sound does not decode ({reason(error)}); {REPLACE}") from error
    wave = wave.mean(axis=1)
    if rate != sampling_rate:
        divisor = np.gcd(rate, sampling_rate)
        wave = resample_poly(wave, sampling_rate // divisor, rate // divisor)
    _check_wave(wave, path)
    return wave.astype(np.float32)


def _check_wave(wave: np.ndarray, path: Path) -> None:
    if len(wave) == 0:
        raise MediaError(f"{path}: the sound is 0 samples long; {REPLACE}")
    if not np.isfinite(wave).all():
        raise MediaError(f"{path}: the sound decodes to NaN or infinity; {REPLACE}")
