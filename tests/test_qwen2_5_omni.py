"""Qwen2.5-Omni: what surrounds upstream's processor and model changes nothing of them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from originals import GOLDEN
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from verl_omni.__main__ import main
from verl_omni.data.row import conversation
from verl_omni.media import read_audio, read_video
from verl_omni.models import tower_outputs
from verl_omni.models.families import family_in, load

FAMILY = load("qwen2_5_omni")
QUESTIONS = ("Is this person happy?", "Is this person sad? Why?")


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return FAMILY.build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def processor(directory):
    return FAMILY.load_processor(directory)


@pytest.fixture
def model(directory):
    tower_outputs.TOWER_OUTPUTS.clear()
    return FAMILY.load_model(directory, dtype=torch.float32)


@pytest.fixture(scope="module")
def thinker(directory):
    return Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()


def media(processor, name="landscape.mp4"):
    frames = read_video(GOLDEN / "clips" / name, processor.num_frames)
    return processor.frame_format().apply(frames), read_audio(GOLDEN / "clips" / name)


def inputs_of(processor, name="landscape.mp4", question=QUESTIONS[0], senses=("video", "audio"), **options):
    found = dict(zip(("video", "audio"), media(processor, name), strict=True))
    content = [*({"type": sense, sense: found[sense]} for sense in senses), {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt", **options,
    )  # fmt: skip


def positions_of(processor, inputs) -> torch.Tensor:
    """As verl's agent loop asks for them, ``[4, 1, L]``."""
    grids = {"image_grid_thw": None, "video_grid_thw": inputs.get("video_grid_thw")}
    positions, _ = processor.get_rope_index(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **grids,
        **processor.get_rope_index_kwargs(inputs),
    )  # fmt: skip
    return torch.cat([torch.arange(positions.shape[-1])[None, None], positions])


def batch_of(processor, samples: list[dict], packed: bool) -> dict:
    """As verl's engine makes it of prompts: padded on the right, or packed."""
    positions = [positions_of(processor, sample) for sample in samples]
    batch = {
        key: torch.cat([sample[key] for sample in samples if key in sample])
        for key in ("pixel_values_videos", "video_grid_thw", "input_features", "feature_attention_mask")
    }
    if packed:
        ids = torch.cat([sample["input_ids"] for sample in samples], dim=1)
        return batch | {"input_ids": ids, "attention_mask": None, "position_ids": torch.cat(positions, dim=2)}
    longest = max(sample["input_ids"].shape[1] for sample in samples)

    def padded(tensor):
        return torch.nn.functional.pad(tensor, (0, longest - tensor.shape[-1]))

    return batch | {
        "input_ids": torch.cat([padded(sample["input_ids"]) for sample in samples]),
        "attention_mask": torch.cat([padded(sample["attention_mask"]) for sample in samples]),
        "position_ids": torch.cat([padded(position) for position in positions], dim=1),
    }


def with_answer(sample: dict, *tokens: int) -> dict:
    ids = torch.cat([sample["input_ids"], torch.tensor([tokens])], dim=1)
    return {**sample, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_patches_are_upstreams_formula(processor):
    """Of ``_preprocess`` in transformers' video_processing_qwen2_vl, in numpy, patch by patch."""
    frames, _ = media(processor, "portrait.mp4")
    inputs = inputs_of(processor, "portrait.mp4")
    video = processor.video_processor
    mean, std = (np.float32(values)[None] * 255 for values in (video.image_mean, video.image_std))
    pixels = ((frames.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2)  # [T, 3, H, W]
    time, height, width = inputs["video_grid_thw"][0].tolist()
    assert (2 * time, 14 * height, 14 * width) == (len(frames), *frames.shape[1:3])
    expected = [
        pixels[2 * t : 2 * t + 2, :, 14 * y : 14 * y + 14, 14 * x : 14 * x + 14].transpose(1, 0, 2, 3).ravel()
        for t in range(time)
        for row in range(0, height, 2)
        for column in range(0, width, 2)
        for y in (row, row + 1)
        for x in (column, column + 1)
    ]
    assert np.abs(inputs["pixel_values_videos"].numpy() - np.stack(expected)).max() <= 1e-6


def test_frames_keep_their_ratio_and_upstream_resizes_them_no_more(processor, directory, tmp_path):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    published = shutil.copytree(directory, tmp_path / "published")
    config = json.loads((published / "processor_config.json").read_text())
    for name in ("size", "num_frames", "do_resize"):  # as published directories have them
        config["video_processor"].pop(name)
    (published / "processor_config.json").write_text(json.dumps(config))
    reader = FAMILY.load_processor(published)
    assert reader.num_frames == 8
    for shape in ((720, 1280), (1080, 1920), (480, 640), (240, 320), (640, 480), (224, 224), (360, 640)):
        [frame] = reader.frame_format().apply([np.zeros((*shape, 3), np.uint8)])
        height, width = frame.shape[:2]
        assert smart_resize(height, width, 28, 128 * 28 * 28, 768 * 28 * 28) == (height, width)
        assert height * width <= 169 * 28 * 28
        assert height / width == pytest.approx(shape[0] / shape[1], rel=0.13)
    frames, _ = media(reader)
    reader(text=["<|VIDEO|>"], videos=[frames], return_tensors="pt")  # raises where it would have to resize


STREAM = {"use_audio_in_video": True}


@pytest.mark.parametrize(
    ("senses", "options"),
    [(("video", "audio"), {}), (("video", "audio"), STREAM), (("video",), {}), (("audio",), {}), ((), {})],
)
def test_the_processor_is_upstreams(processor, directory, senses, options):
    upstream = AutoProcessor.from_pretrained(directory)
    assert type(upstream).__module__.startswith("transformers.")
    frames, wave = media(processor)
    ours = inputs_of(processor, senses=senses, **options)
    shown = senses[:1] if options else senses  # upstream's chats of a stream name the video alone
    text = processor.apply_chat_template(
        [{"role": "user", "content": [*({"type": s} for s in shown), {"type": "text", "text": QUESTIONS[0]}]}],
        add_generation_prompt=True,
    )
    theirs = upstream(
        text=[text], videos=[frames] if "video" in senses else None, audio=[wave] if "audio" in senses else None,
        return_tensors="pt", **options,
    )  # fmt: skip
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, STREAM])
def test_the_model_is_upstreams(processor, model, thinker, options):
    inputs = inputs_of(processor, **options)
    expected = thinker(**inputs, **options).logits
    batch = {key: value for key, value in inputs.items() if key != "video_second_per_grid"}
    batch["position_ids"] = positions_of(processor, inputs)
    of_peft = {"inputs_embeds": None, "return_dict": True}  # what its wrapper adds
    for extra in ({}, of_peft):
        assert torch.equal(model(**batch, use_cache=False, **extra).logits, expected)


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(("train_towers", "options"), [(False, {}), (True, {}), (False, STREAM)])
def test_sharing_changes_neither_logits_nor_gradients(
    processor, model, thinker, packed, train_towers, options, monkeypatch
):
    model.train_towers = train_towers
    model.train()
    clips = [inputs_of(processor, name, **options) for name in ("landscape.mp4", "portrait.mp4")]
    samples = [with_answer(clips[index], *answer) for index, answer in ((0, (5, 6)), (0, (5, 7, 8)), (1, (9,)))]
    batch = batch_of(processor, samples, packed)
    results = {}
    for sharing in ("0", "1"):
        monkeypatch.setenv("VERL_OMNI_SHARING", sharing)
        computed = []
        handle = model.thinker.model.norm.register_forward_hook(
            lambda _, inputs, __, computed=computed: computed.append(inputs[0].shape[:2].numel())
        )
        logits = model(**batch, use_cache=False).logits
        handle.remove()
        kept = logits[0] if packed else logits[batch["attention_mask"].bool()]
        kept.square().mean().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        results[sharing] = kept.detach(), gradients, computed[0]
    (plain, plain_gradients, all_tokens), (shared, gradients, fewer) = results["0"], results["1"]
    assert fewer < all_tokens
    assert (plain - shared).abs().max() <= 1e-5
    assert plain_gradients.keys() == gradients.keys()
    assert any("visual" in name for name in gradients) == train_towers
    assert all(torch.allclose(gradients[n], g, atol=1e-5, rtol=1e-3) for n, g in plain_gradients.items())
    alone = [thinker(**sample, **options).logits[0] for sample in samples]
    assert (shared - torch.cat(alone)).abs().max() <= 1e-4


@torch.no_grad()
def test_frozen_towers_see_a_clip_once(processor, model, monkeypatch):
    seen = []
    for tower in model.towers:
        tower.register_forward_hook(lambda *_: seen.append(1))
    clip = inputs_of(processor)
    batch = batch_of(processor, [with_answer(clip, 5), with_answer(clip, 6)], packed=False)
    for _ in range(2):
        model(**batch, use_cache=False)
    assert len(seen) == 2
    monkeypatch.setenv("VERL_OMNI_SHARING", "0")
    model(**batch, use_cache=False)
    assert len(seen) == 4


def test_the_published_layout_is_loaded_and_exported_without_the_talker(directory, tmp_path, processor):
    """Upstream's directories have the talker's weights beside the thinker's, and another name of the class."""
    published = shutil.copytree(directory, tmp_path / "published")
    weights = load_file(published / "model.safetensors")
    assert all(name.startswith("thinker.") for name in weights)
    save_file(weights | {"talker.model.norm.weight": torch.ones(4)}, published / "model.safetensors", {"format": "pt"})
    config = json.loads((published / "config.json").read_text())
    config |= {"architectures": ["Qwen2_5OmniModel"], "enable_audio_output": True}
    (published / "config.json").write_text(json.dumps(config))
    config = AutoConfig.from_pretrained(published)
    config.train_towers = True
    model = AutoModelForImageTextToText.from_pretrained(published, config=config)
    assert type(model).__module__.startswith("verl_omni.") and model.train_towers
    model.save_pretrained(tmp_path / "export")
    processor.save_pretrained(tmp_path / "export")
    exported = json.loads((tmp_path / "export/config.json").read_text())
    assert exported["architectures"] == ["Qwen2_5OmniForConditionalGeneration"] and "train_towers" not in exported
    assert load_file(tmp_path / "export/model.safetensors").keys() == weights.keys()
    saved = json.loads((tmp_path / "export/processor_config.json").read_text())
    assert saved["processor_class"] == "Qwen2_5OmniProcessor"
    assert family_in(tmp_path / "export") is FAMILY


def test_vllm_gets_one_placeholder_for_each_medium(processor):
    ids = inputs_of(processor)["input_ids"][0].tolist()
    text = processor.tokenizer.decode(processor.collapse_placeholders(ids))
    assert "user\n<|vision_bos|><|VIDEO|><|vision_eos|><|audio_bos|><|AUDIO|><|audio_eos|>Is this" in text


def test_vllm_gets_one_placeholder_for_a_stream(processor):
    ids = inputs_of(processor, **STREAM)["input_ids"][0].tolist()
    text = processor.tokenizer.decode(processor.collapse_placeholders(ids))
    assert "user\n<|vision_bos|><|VIDEO|><|vision_eos|>Is this" in text


def test_evaluation_asks_vllm_for_a_stream(processor):
    from verl_omni.data.check import Row
    from verl_omni.evaluation.answering import Settings
    from verl_omni.evaluation.answering import load as load_job

    clip = str(GOLDEN / "clips/landscape.mp4")
    turns = [{"role": "user", "content": "<video><audio>Who?"}]
    row = Row({"prompt": turns, "videos": [clip], "audios": [clip]}, "rows.json", 0)
    _, request = load_job(row, [], processor, lambda read, *args: read(*args), Settings(use_audio_in_video=True))
    assert "<|vision_bos|><|VIDEO|><|vision_eos|>Who?" in request["prompt"]
    assert request["mm_processor_kwargs"] == STREAM and request["multi_modal_data"].keys() == {"video", "audio"}


def test_a_stream_needs_both_senses(processor, directory, tmp_path):
    from omegaconf import OmegaConf

    from verl_omni.data.check import RowsError
    from verl_omni.data.dataset import OmniRLHFDataset, fill_in_frames

    with pytest.raises(ValueError, match="each video needs its sound"):
        inputs_of(processor, senses=("video",), **STREAM)
    row = {"prompt": [{"role": "user", "content": "<video>Who?"}], "videos": [str(GOLDEN / "clips/landscape.mp4")],
           "data_source": "demo", "reward_model": {"ground_truth": "happy"}}  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    config = OmegaConf.create({"max_prompt_length": 256, "mm_processor_kwargs": STREAM})
    with pytest.raises(RowsError, match=r"rows.json row 0: use_audio_in_video needs a sound"):
        OmniRLHFDataset([str(tmp_path / "rows.json")], processor.tokenizer, config, processor)
    with pytest.raises(ValueError, match="knows no such streams"):
        config = OmegaConf.create({"mm_processor_kwargs": STREAM})
        fill_in_frames(config, load("humanomni").load_processor(load("humanomni").build_tiny(tmp_path / "humanomni")))


def test_verl_loads_model_and_processor_and_bans_what_stands_for_media(directory):
    from verl.utils.model import get_hf_auto_model_class
    from verl.workers.config.model import HFModelConfig
    from verl.workers.rollout.utils import get_max_position_embeddings, get_vision_placeholder_token_ids

    import verl_omni.plugin  # noqa: F401

    config = HFModelConfig(path=str(directory))
    assert get_hf_auto_model_class(config.hf_config) is AutoModelForImageTextToText
    assert config.hf_config.tie_word_embeddings is False, "verl's engine asks the configuration"
    assert get_max_position_embeddings(config.hf_config) == 4096
    processor = config.processor
    banned = processor.tokenizer.convert_ids_to_tokens(get_vision_placeholder_token_ids(processor))
    assert set(banned) == {"<|VIDEO|>", "<|AUDIO|>", "<|IMAGE|>", "<|vision_bos|>", "<|audio_bos|>"}


@pytest.mark.parametrize("options", [{}, STREAM])
def test_fine_tuning_has_the_positions_of_rollouts(processor, tmp_path, options):
    from omegaconf import OmegaConf

    import verl_omni.plugin  # noqa: F401  (verl asks the processor)
    from verl_omni.corpora.demo import build_demo
    from verl_omni.data.dataset import OmniSFTDataset
    from verl_omni.data.files import read_rows

    rows = build_demo(tmp_path, n_train=4, n_test=4, n_sft=4)["sft"]
    config = OmegaConf.create({"max_length": 304, "truncation": "error", "pad_mode": "no_padding"})
    config.mm_processor_kwargs = options
    row = OmniSFTDataset([str(rows)], processor.tokenizer, config, processor)[0]
    asked = read_rows(rows)[0]
    messages = conversation(asked["messages"][:1], asked["videos"], asked["audios"])
    for item in messages[0]["content"][:2]:
        sense = item["type"]
        item[sense] = dict(zip(("video", "audio"), media_of(processor, item[sense]), strict=True))[sense]
    prompt = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt", **options
    )
    length = prompt["input_ids"].shape[1]
    assert torch.equal(row["input_ids"][:length], prompt["input_ids"][0])
    assert torch.equal(row["position_ids"][:, :length], positions_of(processor, prompt)[:, 0])
    assert row["position_ids"].shape == (4, len(row["input_ids"]))
    assert (row["position_ids"][:, length:].diff() == 1).all()


def media_of(processor, path):
    return processor.frame_format().apply(read_video(path, processor.num_frames)), read_audio(path)


@pytest.fixture(scope="module")
def vllm_processor(directory):
    pytest.importorskip("vllm")
    from verl_omni import plugin  # before vLLM: on a CPU it answers for the distribution `vllm`

    plugin.register_vllm()
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY

    limits = {"video": 1, "audio": 1, "image": 0}
    return MULTIMODAL_REGISTRY.create_processor(
        ModelConfig(str(directory), dtype="float32", limit_mm_per_prompt=limits)
    )


@pytest.mark.parametrize("senses", [("video", "audio"), ("video",), ("audio",)])
def test_vllms_processor_makes_the_trainers_inputs_of_verls_prompts(processor, vllm_processor, senses):
    inputs = inputs_of(processor, senses=senses)
    ids = inputs["input_ids"][0].tolist()
    found = dict(zip(("video", "audio"), media(processor), strict=True))
    data = {sense: [found[sense]] for sense in senses}
    if "video" in data:
        data["video"] = [(found["video"], {"instruction": QUESTIONS[0]})]  # as the dataset has it
    items = vllm_processor.info.parse_mm_data(data)
    options = {"sampling_rate": 16000} if "audio" in senses else {}  # verl's agent loop adds it
    output = vllm_processor(processor.collapse_placeholders(ids), items, None, hf_processor_mm_kwargs=options)
    assert_same(output, inputs, senses)


def assert_same(output, inputs, senses):
    """vLLM's processed prompt and the trainer's inputs."""
    assert output["prompt_token_ids"] == inputs["input_ids"][0].tolist()
    if "video" in senses:
        [video] = [item.get_data() for item in output["mm_kwargs"]["video"]]
        assert torch.equal(video["pixel_values_videos"], inputs["pixel_values_videos"])
    if "audio" in senses:
        [sound] = [item.get_data() for item in output["mm_kwargs"]["audio"]]
        heard = inputs["input_features"][0][:, inputs["feature_attention_mask"][0].bool()]
        assert torch.equal(sound["input_audio_features"], heard)


@pytest.mark.parametrize("clip", ["landscape.mp4", "square.mp4"])
def test_a_served_clip_becomes_the_trainers_inputs(processor, vllm_processor, directory, clip, monkeypatch):
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

    import verl_omni.models.vllm_media  # noqa: F401
    from verl_omni.cli.serve import read_as_trained

    monkeypatch.setenv("VLLM_MEDIA_CONNECTOR", "http")  # which the command sets
    [_, options] = read_as_trained(str(directory))
    folder = str((GOLDEN / "clips").resolve())
    connector = MEDIA_CONNECTOR_REGISTRY.load("verl_omni", json.loads(options), allowed_local_media_path=folder)
    url = f"file://{folder}/{clip}"
    data = {"video": [connector.fetch_video(url)], "audio": [connector.fetch_audio(url)]}
    inputs = inputs_of(processor, clip)
    ids = processor.collapse_placeholders(inputs["input_ids"][0].tolist())
    output = vllm_processor(ids, vllm_processor.info.parse_mm_data(data), None)
    assert_same(output, inputs, ("video", "audio"))


@pytest.mark.parametrize(("clip", "num_frames"), [("landscape.mp4", 4), ("landscape.mp4", 16), ("short5.mp4", 4)])
def test_vllm_places_video_and_sound_of_one_stream_as_transformers(
    directory, vllm_processor, clip, num_frames, monkeypatch
):
    """By this package's adjustment, in its own runs alone."""
    from vllm.model_executor.models.qwen2_5_omni_thinker import Qwen2_5OmniThinkerForConditionalGeneration as Thinker
    from vllm.multimodal.inputs import MultiModalFeatureSpec

    processor = FAMILY.load_processor(directory)
    frames = processor.frame_format().apply(read_video(GOLDEN / "clips" / clip, num_frames))
    data = {"video": [frames], "audio": [read_audio(GOLDEN / "clips" / clip)]}
    text = "user\n<|vision_bos|><|VIDEO|><|vision_eos|>Why?"
    inputs = AutoProcessor.from_pretrained(directory)(
        text=[text], videos=data["video"], audio=data["audio"], use_audio_in_video=True, return_tensors="pt"
    )
    expected = positions_of(processor, inputs)[1:, 0]
    output = vllm_processor(
        processor.tokenizer(text)["input_ids"], vllm_processor.info.parse_mm_data(data), None,
        hf_processor_mm_kwargs={"use_audio_in_video": True},
    )  # fmt: skip
    ids = output["prompt_token_ids"]
    assert ids == inputs["input_ids"][0].tolist()
    features = [
        MultiModalFeatureSpec(data=item, modality=sense, identifier=sense, mm_position=place)
        for sense in data
        for item, place in zip(output["mm_kwargs"][sense], output["mm_placeholders"][sense], strict=True)
    ]

    thinker = Thinker.__new__(Thinker)
    thinker.__dict__["config"] = processor.config.thinker_config
    monkeypatch.delenv("VERL_OMNI_RUN", raising=False)
    begin = ids.index(processor.config.thinker_config.audio_start_token_id)
    released = thinker.get_mrope_input_positions(ids, features)[0]
    assert torch.equal(released[:, :begin], expected[:, :begin])
    assert (released[:, begin] - expected[:, begin]).tolist() == [1, 1, 1]
    monkeypatch.setenv("VERL_OMNI_RUN", "1")
    assert torch.equal(thinker.get_mrope_input_positions(ids, features)[0], expected)


@pytest.mark.slow
def test_it_is_loaded_when_such_a_model_is_asked_for(directory):
    """Runs with other models keep transformers as it is."""
    code = f"""
import sys
import verl_omni.models
from verl_omni.models import families
from transformers import Qwen2_5OmniConfig
name = "verl_omni.models.qwen2_5_omni.family"
before = name in sys.modules or "tie_word_embeddings" in vars(Qwen2_5OmniConfig), len(families.loaded())
families.family_in({str(directory)!r})
print(*before, name in sys.modules, len(families.loaded()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-4:] == ["False", "1", "True", "2"]


def test_check_takes_its_frames(directory, tmp_path, capsys):
    rows = [{"prompt": [{"role": "user", "content": "<video>Who?"}], "videos": [str(GOLDEN / "clips/landscape.mp4")],
             "data_source": "demo", "reward_model": {"ground_truth": "happy"}}]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert main(["check", str(tmp_path / "rows.json"), "--model", str(directory)]) == 0
    assert "1 rows, all usable" in capsys.readouterr().out
