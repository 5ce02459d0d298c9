"""The video decoders give the same frames, bit for bit, and name what is wrong in the same kind of error."""

import struct
from collections.abc import Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
from test_media import CLIPS, MANIFEST, fingerprints

from benchmarks.faults import pictures, write_clip
from verl_omni.media import MediaError, read_video
from verl_omni.media.check import check_video
from verl_omni.media.store import Store

DECODERS = ("pyav", pytest.param("torchcodec", marks=pytest.mark.skipif(not find_spec("torchcodec"), reason="missing")))
others = pytest.mark.parametrize("decoder", DECODERS)
TURNED = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}  # degrees -> matrix a, b, c, d
CLIP_NAMES = [name for name, facts in MANIFEST.items() if facts["video"] == "ok" and name.endswith(".mp4")]


def turn(mp4: Path, degrees: int) -> Path:
    """Set the display matrix in the video track's header, as a phone does that was held another way."""
    data, (a, b, c, d) = bytearray(mp4.read_bytes()), TURNED[degrees]
    place = data.index(b"tkhd") + 4 + 40
    data[place : place + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    mp4.write_bytes(data)
    return mp4


def encode(path: Path, codec: str = "libx264", pixels: str = "yuv420p", variable: bool = False, **options: str) -> Path:
    """Moving shapes; of a variable rate with pauses of 5 to 200 ms between frames."""
    generator = np.random.default_rng(0)
    moments = np.cumsum(generator.integers(5, 200, 100))
    with av.open(str(path), "w") as clip:
        video = clip.add_stream(codec, rate=25, options=options)
        video.height, video.width, video.pix_fmt = 120, 160, pixels
        if variable:
            video.codec_context.time_base = Fraction(1, 1000)
        for moment, picture in zip(moments, pictures(generator), strict=False):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if variable:
                frame.pts, frame.time_base = int(moment), Fraction(1, 1000)
            clip.mux(video.encode(frame))
        clip.mux(video.encode(None))
    return path


def made(folder: Path) -> Iterator[Path]:
    for container in ("mp4", "mp4, fragmented", "avi", "mkv", "webm"):
        yield write_clip(folder, container)
    for degrees in TURNED:
        (folder / str(degrees)).mkdir()
        yield turn(write_clip(folder / str(degrees), "mp4"), degrees)
    yield encode(folder / "variable.mp4", variable=True)
    yield encode(folder / "variable.mkv", variable=True)
    yield encode(folder / "hevc.mp4", "libx265")
    yield encode(folder / "422.mp4", pixels="yuv422p")
    yield encode(folder / "opengop.mp4", **{"g": "10", "x264-params": "open-gop=1"})


@others
@pytest.mark.parametrize("name", CLIP_NAMES)
def test_golden_clips_have_the_originals_frames(decoder, name, monkeypatch):
    monkeypatch.setenv("VERL_OMNI_VIDEO_DECODER", decoder)
    assert fingerprints(read_video(CLIPS / name)) == MANIFEST[name]["frame_sha"]


@pytest.mark.slow
@others
def test_containers_codecs_rotations_and_variable_rates_decode_alike(decoder, monkeypatch, tmp_path):
    shapes = set()
    for clip in made(tmp_path):
        monkeypatch.delenv("VERL_OMNI_VIDEO_DECODER", raising=False)
        expected = read_video(clip)
        monkeypatch.setenv("VERL_OMNI_VIDEO_DECODER", decoder)
        np.testing.assert_array_equal(read_video(clip), expected, err_msg=str(clip))
        shapes.add(expected.shape[1:3])
    assert shapes == {(120, 160), (160, 120)}  # some were turned


def test_a_codec_that_decord_lacks_is_decoded_by_pyav(monkeypatch, tmp_path):
    clip = encode(tmp_path / "clip.mp4", "libsvtav1")
    monkeypatch.setenv("VERL_OMNI_VIDEO_DECODER", "pyav")
    assert read_video(clip).std() > 10


@others
@pytest.mark.parametrize("kind", ["no video", "text", "a block of zeros"])
def test_what_does_not_decode_is_named(decoder, kind, monkeypatch, tmp_path):
    monkeypatch.setenv("VERL_OMNI_VIDEO_DECODER", decoder)
    clip = {"no video": CLIPS / "speech1.wav", "text": tmp_path / "clip.mp4"}.get(kind)
    if kind == "text":
        clip.write_text("not a video")
    elif clip is None:
        clip = write_clip(tmp_path, "mkv")
        data = clip.read_bytes()
        clip.write_bytes(data[: len(data) // 3] + bytes(len(data) - len(data) // 3))
    with pytest.raises(MediaError, match=rf"{clip.name}: .*(no video stream|does not decode)"):
        check_video(clip)


def test_an_unknown_decoder_is_refused_with_those_that_there_are(monkeypatch):
    monkeypatch.setenv("VERL_OMNI_VIDEO_DECODER", "ffmpeg")
    with pytest.raises(MediaError, match="VERL_OMNI_VIDEO_DECODER=ffmpeg: there are decord, pyav"):
        read_video(CLIPS / "landscape.mp4")


def test_each_decoder_has_entries_of_its_own_in_the_media_cache(monkeypatch, tmp_path):
    keys = set()
    for decoder in (None, "decord", "pyav"):
        if decoder:
            monkeypatch.setenv("VERL_OMNI_VIDEO_DECODER", decoder)
        keys.add(Store(tmp_path, 0).entry(CLIPS / "landscape.mp4", ("video", 8)))
    assert len(keys) == 2
