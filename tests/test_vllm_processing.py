"""HumanOmni's multimodal processor in vLLM: prompts and media in every accepted form, without an engine."""

import asyncio
import base64
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig

from verl_omni.media import read_audio, read_video
from verl_omni.media.resize import FrameFormat

pytest.importorskip("vllm")
from verl_omni import plugin  # before vLLM: on a CPU it answers for the distribution `vllm`
from verl_omni.adjustments.vllm_placeholders_without_media import reject_placeholders_without_media
from verl_omni.models import HumanOmniProcessor
from verl_omni.models.humanomni.tiny import build_tiny

CLIPS = Path(__file__).parent / "golden" / "clips"
HAPPY, SAD = "Is this person happy?", "Is this person sad? Why?"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def hf(directory):
    return HumanOmniProcessor.from_pretrained(directory)


@pytest.fixture(scope="module")
def vllm(directory):
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY

    plugin.register_vllm()
    config = ModelConfig(str(directory), dtype="float32", limit_mm_per_prompt={"video": 2, "audio": 2})
    return MULTIMODAL_REGISTRY.create_processor(config)


@pytest.fixture(scope="module")
def frames():
    return read_video(CLIPS / "landscape.mp4")


@pytest.fixture(scope="module")
def wave():
    return read_audio(CLIPS / "landscape.mp4")


def prompt(hf, media="va", question=HAPPY):
    kinds = {"v": "video", "a": "audio"}
    content = [*({"type": kinds[m]} for m in media), {"type": "text", "text": question}]
    return hf.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def encode(hf, text):
    return hf.tokenizer.encode(text, add_special_tokens=False)


def process(vllm, text, uuids=None, kwargs=None, **media):
    return vllm(text, vllm.info.parse_mm_data(media), uuids, hf_processor_mm_kwargs=kwargs or {})


def tensors(output, modality):
    return [item.get_data() for item in output["mm_kwargs"][modality]]


@pytest.mark.parametrize("media", ["va", "v", "a", "av", "vvaa"])
def test_ids_expanded_or_not_give_the_hf_processors_ids(hf, vllm, frames, wave, media):
    text = prompt(hf, media)
    data = {"video": [(frames, {"instruction": HAPPY})] * media.count("v"), "audio": [wave] * media.count("a")}
    data = {modality: items for modality, items in data.items() if items}
    hf_media = {"videos": [frames] * media.count("v") or None, "audio": data.get("audio")}
    expected = hf(text=[text], **hf_media)["input_ids"][0]
    outputs = [process(vllm, form, **data) for form in (text, encode(hf, text), expected)]
    for output in outputs:
        assert output["prompt_token_ids"] == list(expected)
        assert output["mm_hashes"] == outputs[0]["mm_hashes"]
        lengths = {m: [p.length for p in places] for m, places in output["mm_placeholders"].items()}
        assert lengths == {m: [{"video": 32, "audio": 33}[m]] * len(items) for m, items in data.items()}


def test_tensors_are_the_hf_processors(hf, vllm, frames, wave):
    text = prompt(hf)
    output = process(vllm, text, video=[(frames, {"instruction": SAD})], audio=[wave])
    expected = hf(
        text=[text], videos=[frames], audio=[wave], video_metadata=[{"instruction": SAD}], return_tensors="pt"
    )
    found = tensors(output, "video")[0] | tensors(output, "audio")[0]
    assert sorted(found) == ["bert_attention_mask", "bert_input_ids", "input_features", "pixel_values"]
    for name, value in found.items():
        assert torch.equal(value, expected[name][0]), name


def test_the_question_is_part_of_a_videos_hash_and_of_no_other(hf, vllm, frames, wave):
    first, second = (
        process(vllm, prompt(hf), video=[(frames, {"instruction": question})], audio=[wave])
        for question in (HAPPY, SAD)
    )
    assert first["mm_hashes"]["video"] != second["mm_hashes"]["video"]
    assert first["mm_hashes"]["audio"] == second["mm_hashes"]["audio"]


@pytest.mark.parametrize("form", ["text", "ids", "expanded"])
def test_a_video_without_a_question_gets_the_prompts(hf, vllm, frames, form):
    text = prompt(hf, "v", SAD)
    given = process(vllm, text, video=[(frames, {"instruction": SAD})])
    ids = {"text": text, "ids": encode(hf, text), "expanded": given["prompt_token_ids"]}[form]
    derived = process(vllm, ids, video=[frames])
    assert derived["mm_hashes"] == given["mm_hashes"]
    assert torch.equal(tensors(derived, "video")[0]["bert_input_ids"], tensors(given, "video")[0]["bert_input_ids"])


def test_a_callers_name_for_a_clip_does_not_hide_the_question(hf, vllm, frames):
    first, second = (
        process(vllm, prompt(hf, "v", question), uuids={"video": ["clip7"]}, video=[frames])
        for question in (HAPPY, SAD)
    )
    assert first["mm_hashes"] != second["mm_hashes"]


def test_every_form_of_a_video_is_the_same_item(hf, vllm, frames):
    forms = [
        frames,
        torch.from_numpy(frames).permute(0, 3, 1, 2),
        [Image.fromarray(frame) for frame in frames],
        (frames, None),
        (frames, {"fps": 25.0, "total_num_frames": 100}),
    ]
    outputs = [process(vllm, prompt(hf, "v"), video=[form]) for form in forms]
    assert len({output["mm_hashes"]["video"][0] for output in outputs}) == 1
    for output in outputs:
        assert torch.equal(tensors(output, "video")[0]["pixel_values"], hf.process_frames(frames))


def test_every_form_of_a_sound_is_the_same_mel(hf, vllm, wave):
    expected = hf(audio=[wave], return_tensors="pt")["input_features"][0]
    for form in (wave, (wave, 16000), wave.tolist(), torch.from_numpy(wave), (np.stack([wave, wave]), 16000)):
        output = process(vllm, prompt(hf, "a"), audio=[form])
        assert torch.allclose(tensors(output, "audio")[0]["input_features"], expected, atol=1e-4)


def test_sounds_are_resampled_as_sound_files_are(hf, vllm, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    time = np.arange(44100, dtype=np.float32) / 44100
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "tone.wav", tone, 44100, subtype="FLOAT")
    expected = hf(audio=[read_audio(tmp_path / "tone.wav")], return_tensors="pt")["input_features"][0]
    output = process(vllm, prompt(hf, "a"), audio=[(tone.astype(np.float32), 44100)])
    assert torch.allclose(tensors(output, "audio")[0]["input_features"], expected, atol=1e-3)


def test_prompt_style_and_aspect_ratio_of_a_request(hf, vllm, frames):
    text, kwargs = prompt(hf, "v"), {"prompt_style": "grpo", "aspect_ratio": "squash"}
    expected = hf(text=[text], videos=[frames], return_tensors="pt", **kwargs)
    output = process(vllm, encode(hf, text), kwargs=kwargs, video=[frames])
    assert output["prompt_token_ids"] == expected["input_ids"][0].tolist()
    assert torch.equal(tensors(output, "video")[0]["pixel_values"], expected["pixel_values"][0])


def test_placeholders_and_media_that_do_not_match_are_errors(hf, vllm, frames, wave):
    ids = encode(hf, prompt(hf, "v"))
    place = ids.index(hf.video_token_id)
    with pytest.raises(ValueError, match="7 video placeholders"):
        process(vllm, ids[:place] + [hf.video_token_id] * 7 + ids[place + 1 :], video=[frames])
    with pytest.raises(ValueError, match="placeholders for 0 audio items, but 1"):
        process(vllm, ids, video=[frames], audio=[wave])
    with pytest.raises(ValueError, match="placeholders for 1 video items, but 0"):
        process(vllm, encode(hf, prompt(hf, "va")), audio=[wave])


def test_frames_the_model_does_not_take_are_errors(hf, vllm, frames):
    with pytest.raises(ValueError, match="5 frames; this model takes 8"):
        process(vllm, prompt(hf, "v"), video=[frames[:5]])
    with pytest.raises(ValueError, match=r"float32 \[8, "):
        process(vllm, prompt(hf, "v"), video=[frames.astype(np.float32)])


@pytest.mark.parametrize("clip", ["landscape.mp4", "clip.gif", "speech1.wav"])
def test_a_server_reads_files_and_data_as_the_datasets_do(clip):
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

    import verl_omni.models.vllm_media  # noqa: F401

    format_ = {"size": (112, 112), "multiple": 28}
    connector = MEDIA_CONNECTOR_REGISTRY.load(
        "verl_omni", {"video": {"num_frames": 4, "frame_format": format_}}, allowed_local_media_path=str(CLIPS)
    )
    path = (CLIPS / clip).resolve()
    for url in (path.as_uri(), f"data:;base64,{base64.b64encode(path.read_bytes()).decode()}"):
        if not clip.endswith(".wav"):
            frames, metadata = connector.fetch_video(url)
            assert metadata == {} and np.array_equal(frames, FrameFormat(**format_).apply(read_video(path, 4)))
        if not clip.endswith(".gif"):
            wave, rate = asyncio.run(connector.fetch_audio_async(url))
            assert rate == 16000 and np.array_equal(wave, read_audio(path))


def test_placeholders_without_media_are_refused_where_vllm_imports_its_errors_elsewhere(directory):
    """vLLM 0.24's ``input_processor`` has no name ``VLLMValidationError``."""
    from vllm.exceptions import VLLMValidationError

    class InputProcessor:
        model_config = SimpleNamespace(hf_config=AutoConfig.from_pretrained(directory))

        def _validate_model_input(self, prompt_input, prompt_type):
            pass

    input_processor = ModuleType("input_processor")
    input_processor.InputProcessor = InputProcessor
    reject_placeholders_without_media(input_processor)
    ids = [5, InputProcessor.model_config.hf_config.audio_token_id]
    with pytest.raises(VLLMValidationError, match="no media were passed"):
        InputProcessor()._validate_model_input({"type": "token", "prompt_token_ids": ids}, "decoder")
