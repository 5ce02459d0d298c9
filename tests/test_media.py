"""Reading media: bit-equal to the original on real clips, and an error that names the file on anything broken."""

import hashlib
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

from verl_omni.media import MediaError, NoAudioError, read_audio, read_video
from verl_omni.media.video import frame_indices

GOLDEN = Path(__file__).parent / "golden"
CLIPS = GOLDEN / "clips"
MANIFEST = json.loads((GOLDEN / "media/manifest.json").read_text())
# A gif shorter than 8 frames is where we differ on purpose: see test_short_gif_repeats_frames_instead_of_black_ones.
SAME_AS_ORIGINAL = [name for name, facts in MANIFEST.items() if facts["video"] == "ok" and name != "gif5.gif"]
WITH_SOUND = ["landscape", "portrait", "square", "short5", "lateaudio", "shortaudio"]


def fingerprints(frames: np.ndarray) -> list[str]:
    return [hashlib.sha256(frame.tobytes()).hexdigest()[:16] for frame in frames]


def test_frame_indices_equal_the_original():
    for num_frames, rows in json.loads((GOLDEN / "frame_sample.json").read_text()).items():
        for total, indices in rows.items():
            assert frame_indices(int(total), int(num_frames)) == indices, (total, num_frames)


@pytest.mark.parametrize("name", SAME_AS_ORIGINAL)
def test_frames_equal_the_original_bit_for_bit(name):
    frames = read_video(CLIPS / name)
    assert frames.dtype == np.uint8 and frames.shape[0] == 8 and frames.shape[3] == 3
    assert fingerprints(frames) == MANIFEST[name]["frame_sha"]


def test_short_gif_repeats_frames_instead_of_black_ones():
    ours, original = fingerprints(read_video(CLIPS / "gif5.gif")), MANIFEST["gif5.gif"]["frame_sha"]
    assert ours == [original[index] for index in (0, 1, 1, 2, 2, 3, 3, 4)]
    assert original[5] == original[6] == original[7], "the original's three black frames"


def test_list_of_images_is_read_in_the_given_order():
    images = [CLIPS / f"frames_dir/frame_{number}.png" for number in range(1, 13)]
    by_name, by_number = read_video(CLIPS / "frames_dir"), read_video(images)
    assert not np.array_equal(by_name, by_number)
    np.testing.assert_array_equal(by_number[-1], by_name[1])  # frame_11: last by number, second by name


def test_folder_whose_numbers_are_not_padded_gives_a_warning(caplog):
    read_video(CLIPS / "frames_dir")
    assert "pad numbers with zeros" in caplog.text


@pytest.mark.parametrize("name", WITH_SOUND)
def test_waveform_equals_the_original(name):
    wave = read_audio(CLIPS / f"{name}.mp4")
    assert wave.dtype == np.float32
    original = load_file(GOLDEN / f"media/{name}_mp4.safetensors")["wave"]
    np.testing.assert_allclose(wave, original, rtol=0, atol=2e-7)


def test_audio_file_is_resampled_to_mono_16k(tmp_path):
    wave, rate = soundfile.read(CLIPS / "speech1.wav")
    ours = read_audio(CLIPS / "speech1.wav")
    assert ours.dtype == np.float32 and len(ours) == pytest.approx(len(wave) * 16000 / rate, abs=1)
    soundfile.write(tmp_path / "stereo.flac", np.stack([wave, np.zeros_like(wave)], axis=1), rate)
    np.testing.assert_allclose(read_audio(tmp_path / "stereo.flac"), ours / 2, atol=1e-4)


def test_no_audio_track_is_an_error_of_its_own():
    with pytest.raises(NoAudioError, match=r"noaudio\.mp4: no audio track"):
        read_audio(CLIPS / "noaudio.mp4")


@pytest.mark.parametrize("read", [read_video, read_audio])
@pytest.mark.parametrize("kind", ["missing", "empty", "broken", "text"])
def test_unusable_file_is_named(read, kind, tmp_path):
    path = tmp_path / "clip.mp4"
    if kind == "broken":
        shutil.copy(CLIPS / "broken.mp4", path)
    elif kind != "missing":
        path.write_text("" if kind == "empty" else "not a video")
    with pytest.raises(MediaError, match=r"clip\.mp4: "):
        read(path)


def faststart(source: Path, target: Path) -> bytes:
    """Copy the clip with its index in front, so that a cut file still opens; return its bytes."""
    with av.open(str(source)) as clip, av.open(str(target), "w", options={"movflags": "faststart"}) as copy:
        streams = {stream: copy.add_stream_from_template(stream) for stream in clip.streams}
        for packet in clip.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                copy.mux(packet)
    return target.read_bytes()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
def test_download_cut_in_the_middle_is_an_error_for_sight_and_for_sound(share, tmp_path):
    whole = faststart(CLIPS / "landscape.mp4", tmp_path / "whole.mp4")
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(MediaError, match=r"cut\.mp4: the video does not decode"):
        read_video(path)
    with pytest.raises(MediaError, match=r"cut\.mp4: the sound does not decode \(cut short: "):
        read_audio(path)


def test_folder_without_images_and_frames_of_different_sizes_are_errors(tmp_path):
    with pytest.raises(MediaError, match="no images"):
        read_video(tmp_path)
    for name in ("frame_1.png", "frame_2.png"):
        shutil.copy(CLIPS / "frames_dir" / name, tmp_path / name)
    (tmp_path / "frame_2.png").write_bytes((tmp_path / "frame_2.png").read_bytes()[:200])
    with pytest.raises(MediaError, match=r"frame_2\.png: the image does not decode"):
        read_video(tmp_path)
