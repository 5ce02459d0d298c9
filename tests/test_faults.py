"""Damaged and odd files: each is an error that names it, and none takes the process along."""

import os
import socket
import time
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import psutil
import pytest
import soundfile
from originals import cut_sound
from PIL import Image

from benchmarks.faults import CONTAINERS, DAMAGES, campaign, claim_a_billion_frames, write_clip
from verl_omni.__main__ import main
from verl_omni.data.check import check_media, load_rows
from verl_omni.media import DamagedAudioError, EmptyAudioError, MediaError, NoAudioError, read_audio, read_video
from verl_omni.media.cache import read_audio_once, read_video_once
from verl_omni.media.check import check_audio, check_video
from verl_omni.media.child import Children

CLIPS = Path(__file__).parent / "golden/clips"
READ_AND_CHECK = {"video": (read_video, check_video), "audio": (read_audio, check_audio)}
SENSES = [
    (container, sense)
    for container, (_, video, audio, _) in CONTAINERS.items()
    for sense in ["video"] * bool(video) + ["audio"] * bool(audio)
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {container: write_clip(folder, container) for container in CONTAINERS}


@pytest.fixture(scope="module")
def killer(clips, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("killer") / "killer.mp4"
    path.write_bytes(claim_a_billion_frames(clips["mp4"].read_bytes()))
    return path


def write_sound(
    path: Path, rate: int, layout: str, seconds: float = 1.2, codec: str = "aac", level: float = 0.3
) -> Path:
    samples = np.random.default_rng(0).standard_normal((len(av.AudioLayout(layout).channels), int(rate * seconds)))
    samples = np.cumsum(samples, axis=1)
    samples -= np.linspace(samples[:, 0], samples[:, -1], samples.shape[1], axis=1)
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream(codec, rate=rate, layout=layout)
        if samples.size:
            samples = (level * samples / np.abs(samples).max()).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            clip.mux(stream.encode(frame))
        clip.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("container", "sense"), SENSES)
def test_a_whole_file_passes(clips, container, sense):
    for function in READ_AND_CHECK[sense]:
        function(str(clips[container]))


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.9])
@pytest.mark.parametrize(("container", "sense"), SENSES)
def test_a_file_cut_short_is_named_in_both_senses(clips, container, sense, share, tmp_path):
    data = clips[container].read_bytes()
    path = tmp_path / clips[container].name
    path.write_bytes(data[: int(len(data) * share)])
    for function in READ_AND_CHECK[sense]:
        with pytest.raises(MediaError, match=path.name):
            function(str(path))


@pytest.mark.parametrize("container", ["mp4, index first", "mp4, fragmented", "avi", "mkv"])
@pytest.mark.parametrize("seed", range(3))
def test_damage_that_a_codec_reports_fails_the_check(clips, container, seed, tmp_path):
    path = tmp_path / clips[container].name
    damage = DAMAGES["20 bits flipped in the middle"]
    path.write_bytes(damage(clips[container].read_bytes(), np.random.default_rng(seed)))
    with pytest.raises(MediaError, match=path.name):
        check_video(str(path))


def test_a_decoder_that_dies_is_named_and_the_other_rows_are_checked(killer, clips, caplog):
    def row(clip: Path) -> str:
        label = '"data_source": "demo", "reward_model": {"ground_truth": "happy"}'
        return f'{{"prompt": [{{"role": "user", "content": "<video>Who?"}}], "videos": ["{clip}"], {label}}}'

    rows = killer.with_name("rows.jsonl")
    rows.write_text("\n".join(row(clip) for clip in (clips["mp4"], killer, clips["mkv"], CLIPS / "broken.mp4", killer)))
    with pytest.raises(ValueError) as error:
        check_media(load_rows([str(rows)]))
    lines = str(error.value).splitlines()
    assert "row 1: " in lines[1] and "killer.mp4: the decoder crashes (SIGABRT" in lines[1]
    assert "row 3: " in lines[2] and "broken.mp4" in lines[2]
    assert "row 4: " in lines[3] and len(lines) == 4


def test_check_survives_and_fails(killer, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(
        f'{{"prompt": [{{"role": "user", "content": "<video>Who?"}}], "videos": ["{killer}"], "data_source": "demo", '
        '"reward_model": {"ground_truth": "happy"}}'
    )
    assert main(["check", str(tmp_path / "rows.jsonl")]) == 1
    assert "killer.mp4: the decoder crashes" in capsys.readouterr().err


def test_a_decoder_that_hangs_is_stopped_and_the_next_call_answered(own_decoders):
    with closing(Children()) as children:
        with pytest.raises(MediaError, match=r"^5: the decoder hangs \(no end after 0\.2 s\)"):
            children.call(time.sleep, 5, seconds=0.2)
        assert children.call(read_video, CLIPS / "landscape.mp4").shape == (8, 240, 320, 3)
        with pytest.raises(NoAudioError, match=r"noaudio\.mp4"):
            children.call(read_audio, CLIPS / "noaudio.mp4")
        assert children.idle.qsize() == 1, "one child for calls one after another"
        children.idle.put(child := children.idle.get())
    assert child.process.poll() is not None, "closing ends it"


@pytest.mark.parametrize("container", ["mp4", "avi", "mkv"])
def test_a_title_that_is_no_utf8_is_no_reason_to_refuse_a_clip(container, clips, tmp_path):
    path = tmp_path / clips[container].name
    with av.open(str(clips[container])) as clip, av.open(str(path), "w") as copy:
        copy.metadata["title"] = "a title here"
        streams = {stream: copy.add_stream_from_template(stream) for stream in clip.streams}
        for packet in clip.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                copy.mux(packet)
    data = path.read_bytes()
    assert b"a title here" in data
    path.write_bytes(data.replace(b"a title here", "中文标题六字".encode("gbk")))
    check_video(str(path))
    check_audio(str(path))


def odd_files(folder: Path) -> dict[str, object]:
    os.mkfifo(folder / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.bind(str(folder / "socket.mp4"))
    (folder / "sound.raw").write_bytes(bytes(5000))
    soundfile.write(folder / "rate.wav", np.zeros(5000), 16000)
    data = (folder / "rate.wav").read_bytes()
    (folder / "rate.wav").write_bytes(data[:24] + b"\xff\xff\xff\x7f" + data[28:])
    (folder / "text.wav").write_text("no sound")
    (folder / "text.mkv").write_bytes(b"\x1a\x45\xdf\xa3")
    return {
        "a pipe": folder / "pipe.mp4",
        "a socket": folder / "socket.mp4",
        "a device": "/dev/zero",
        "raw samples": folder / "sound.raw",
        "a rate of 2 GHz": folder / "rate.wav",
        "a long name": folder / ("x" * 300 + ".mp4"),
        "a zero byte": str(folder / "a\0b.mp4"),
        "a lone surrogate": str(folder / "\ud800.mp4"),
        "text": folder / "text.wav",
        "half a header": folder / "text.mkv",
        "a number": 3,
        "nothing": None,
    }


@pytest.mark.parametrize("read", [read_video, read_audio, read_video_once, read_audio_once, check_video, check_audio])
def test_whatever_cannot_be_read_is_a_media_error(read, tmp_path):
    for kind, source in odd_files(tmp_path).items():
        if kind in ("a number", "nothing") and read in (read_video_once, read_audio_once):
            continue  # of these the cache takes no key
        with pytest.raises(MediaError):
            print(kind, read(source, *([8] if read is read_video_once else [])))


def test_a_picture_too_large_to_decode_is_a_media_error(tmp_path, monkeypatch):
    Image.new("RGB", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(MediaError, match=r"bomb\.png: the image does not decode"):
        read_video([tmp_path / "bomb.png"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_a_media_error(tmp_path):
    write_sound(tmp_path / "clip.mp4", 16000, "mono").chmod(0)
    with pytest.raises(MediaError, match=r"clip\.mp4"):
        read_audio(tmp_path / "clip.mp4")


@pytest.mark.parametrize("seconds", [0, 0.01])
def test_a_track_with_nothing_to_hear_is_no_audio(seconds, tmp_path):
    soundfile.write(tmp_path / "clip.wav", np.zeros(int(seconds * 16000)), 16000)
    with pytest.raises(EmptyAudioError, match=r"clip\.wav: its audio track has \d+ ms of sound") as error:
        read_audio(tmp_path / "clip.wav")
    assert isinstance(error.value, NoAudioError)


def test_an_mp4_whose_sound_track_is_empty_is_no_audio(tmp_path):
    with av.open(str(tmp_path / "clip.mp4"), "w") as clip:
        video, _ = clip.add_stream("libx264", rate=25), clip.add_stream("aac", rate=44100, layout="mono")
        video.width = video.height = 64
        for _ in range(10):
            clip.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        clip.mux(video.encode(None))
    with pytest.raises(NoAudioError, match=r"clip\.mp4"):
        read_audio(tmp_path / "clip.mp4")


def test_a_track_that_announces_more_than_decodes_is_damaged_sound(tmp_path):
    clip = cut_sound(CLIPS / "landscape.mp4", tmp_path / "cut.mp4")
    for read in (read_audio, check_audio):
        with pytest.raises(DamagedAudioError, match=r"s of sound announced, \d\.\d s found") as error:
            read(clip)
        assert isinstance(error.value, NoAudioError), "what data.no_audio decides on"
    check_video(str(clip))


def test_a_codec_that_decord_lacks_is_named(tmp_path):
    with av.open(str(tmp_path / "clip.mp4"), "w") as clip:
        stream = clip.add_stream("libsvtav1", rate=25)
        stream.width = stream.height = 64
        for _ in range(3):
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        clip.mux(stream.encode(None))
    with pytest.raises(MediaError, match=r"clip\.mp4: decord has no decoder for its codec, av1; encode it anew"):
        read_video(tmp_path / "clip.mp4")


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000])
def test_sound_is_what_decord_gives_the_original(rate, layout, tmp_path):
    path = write_sound(tmp_path / "clip.mp4", rate, layout, level=0.9)
    original = decord.AudioReader(str(path), sample_rate=16000, mono=True)[:].asnumpy()[0]
    np.testing.assert_allclose(read_audio(path), original, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_sound_leaves_nothing_behind_in_memory(tmp_path):
    path = write_sound(tmp_path / "clip.mp4", 16000, "mono", seconds=10)
    for _ in range(20):
        read_audio(path)
    before = psutil.Process().memory_info().rss
    for _ in range(100):
        read_audio(path)
    assert psutil.Process().memory_info().rss - before < 20 * 2**20  # a waveform has 0.6 MB


@pytest.mark.parametrize(
    ("seeds", "containers"), [(1, ["mp4"]), pytest.param(2, ["mp4", "mkv", "ts", "mp3"], marks=pytest.mark.slow)]
)
def test_a_campaign_finds_no_crash_of_the_caller_no_hang_and_no_nameless_error(seeds, containers):
    cases = campaign(seeds, containers=containers)
    assert not [case for case in cases if case.outcome in ("hang", "foreign")]
    assert {case.outcome for case in cases if case.damage == "cut at the end"} == {"named"}
    assert {case.outcome for case in cases if case.damage == "noise appended"} <= {"named", "same"}
