"""A server's media, read as the datasets read them: a clip has the frames and the sound of training and evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pybase64
import soundfile
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, AudioMediaIO, MediaConnector, MediaIO, VideoMediaIO

from verl_omni.media import read_audio, read_video
from verl_omni.media.child import Children
from verl_omni.media.resize import FrameFormat
from verl_omni.media.store import decode_frames

CONNECTOR = "verl_omni"  # of ``VLLM_MEDIA_CONNECTOR``
SAMPLING_RATE = 16000


@MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)
class OmniMediaConnector(MediaConnector):
    """vLLM's, which fetches; files are then decoded in a child: damage kills that, not the server."""

    children = Children()

    def load_from_url(self, url: str, media_io: MediaIO, **kwargs: Any) -> Any:
        return super().load_from_url(url, self.decoder(media_io), **kwargs)

    async def load_from_url_async(self, url: str, media_io: MediaIO, **kwargs: Any) -> Any:
        return await super().load_from_url_async(url, self.decoder(media_io), **kwargs)

    def decoder(self, media_io: MediaIO) -> MediaIO:
        """Ours in place of vLLM's, for videos and sounds.

        A video becomes ``(uint8 [T, H, W, 3], {})``, of ``num_frames`` and perhaps ``frame_format`` of
        ``--media-io-kwargs``; a sound ``(float32 [samples], 16000)``.
        """
        call = self.children.call
        if isinstance(media_io, AudioMediaIO):
            return Decoder(media_io, lambda path: (call(read_audio, path, SAMPLING_RATE), SAMPLING_RATE))
        if isinstance(media_io, VideoMediaIO):
            wanted = media_io.kwargs.get("frame_format")
            read = partial(decode_frames, frame_format=FrameFormat(**wanted)) if wanted else read_video
            return Decoder(media_io, lambda path: (call(read, path, media_io.num_frames), {}))
        return media_io


@dataclass
class Decoder(MediaIO):
    """Reads files by ``read``; ``verl_omni.media.MediaError`` for one that does not decode, or kills the decoder."""

    theirs: MediaIO
    read: Callable[[str], tuple]

    def load_file(self, filepath: Path) -> tuple:
        return self.read(str(filepath))

    def load_base64(self, media_type: str, data: str) -> Any:
        if media_type == "video/jpeg":  # vLLM's own way to send frames
            return self.theirs.load_base64(media_type, data)
        return self.load_bytes(pybase64.b64decode(data))

    def load_bytes(self, data: bytes) -> tuple:
        with NamedTemporaryFile(suffix=suffix_of(data)) as file:
            file.write(data)
            file.flush()
            return self.read(file.name)


def suffix_of(data: bytes) -> str:
    """By which the readers choose a decoder; what none has a choice for is FFmpeg's to recognise."""
    if data.startswith(b"GIF8"):
        return ".gif"
    try:
        return f".{soundfile.info(BytesIO(data)).format.lower()}"
    except soundfile.LibsndfileError:
        return ".mp4"
