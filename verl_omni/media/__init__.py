"""Media file -> frames and waveform. Knows neither verl nor the model, and imports no torch.

A file that cannot be read raises ``MediaError``; nothing here stands in black frames or silence for data.
"""

from verl_omni.media.audio import read_audio
from verl_omni.media.errors import DamagedAudioError, EmptyAudioError, MediaError, NoAudioError
from verl_omni.media.video import frame_indices, read_video

__all__ = [
    "DamagedAudioError",
    "EmptyAudioError",
    "MediaError",
    "NoAudioError",
    "frame_indices",
    "read_audio",
    "read_video",
]
