"""Original checkpoint -> self-contained directory -> original checkpoint."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from originals import HUMANOMNI, TOWERS
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

import verl_omni.models  # noqa: F401
from verl_omni.__main__ import main
from verl_omni.models.humanomni import conversion
from verl_omni.models.humanomni.configuration import HumanOmniConfig
from verl_omni.models.humanomni.conversion import ConversionError, convert, convert_back
from verl_omni.models.humanomni.modeling import HumanOmniQwen2ForCausalLM

BARE = HUMANOMNI / "ckpt_no_towers"


def original_towers():
    """SigLIP's and Whisper's weights under the names that the original saves them by."""
    vision, audio = (load_file(TOWERS[name] / "model.safetensors") for name in ("vision", "audio"))
    weights = {f"model.vision_tower.vision_tower.{k}": v for k, v in vision.items() if k.startswith("vision_model.")}
    encoder = {name.removeprefix("model."): value for name, value in audio.items() if name.startswith("model.encoder.")}
    projector, classifier = torch.nn.Linear(48, 16), torch.nn.Linear(16, 2)
    head = {f"projector.{k}": v for k, v in projector.state_dict().items()}
    head |= {f"classifier.{k}": v for k, v in classifier.state_dict().items()}
    return weights | {f"model.audio_tower.audio_tower.{name}": value for name, value in (encoder | head).items()}


def write_checkpoint(directory, weights, save=lambda weights, d: save_file(weights, d / "model.safetensors")):
    shutil.copytree(BARE, directory, ignore=shutil.ignore_patterns("model.safetensors"))
    save(weights, directory)
    return directory


def weights_of(directory):
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.fixture
def with_towers(tmp_path):
    weights = load_file(BARE / "model.safetensors") | original_towers()
    assert len(weights) == 304
    return write_checkpoint(tmp_path / "with_towers", weights)


def test_there_and_back_without_towers(converted, tmp_path):
    back = convert_back(converted, tmp_path / "back")
    assert_same(weights_of(back), weights_of(BARE))
    for file in [*BARE.glob("*.json")]:
        assert json.loads((back / file.name).read_text()) == json.loads(file.read_text()), file.name
    assert (back / "merges.txt").read_text() == (BARE / "merges.txt").read_text()


@pytest.mark.parametrize("towers", ["directories", "checkpoint"])
def test_there_and_back_with_towers(with_towers, towers, tmp_path):
    directory = convert(with_towers, tmp_path / "new", **TOWERS, towers=towers)
    assert_same(weights_of(convert_back(directory, tmp_path / "back")), weights_of(with_towers))


def test_the_command_line(tmp_path, capsys):
    flags = [word for name, path in TOWERS.items() for word in (f"--{name}", str(path))]
    assert main(["convert", str(BARE), *flags, "--out", str(tmp_path / "new")]) == 0
    assert main(["convert", str(tmp_path / "new"), "--back", "--out", str(tmp_path / "back")]) == 0
    assert_same(weights_of(tmp_path / "back"), weights_of(BARE))
    assert main(["convert", str(BARE), "--out", str(tmp_path / "again")]) == 2
    assert "pass --vision DIR" in capsys.readouterr().err


def test_the_directory_needs_no_other_path(converted, tmp_path):
    moved = shutil.copytree(converted, tmp_path / "moved")
    model, processor = AutoModelForCausalLM.from_pretrained(moved), AutoProcessor.from_pretrained(moved)
    assert type(model) is HumanOmniQwen2ForCausalLM
    assert model.generation_config.repetition_penalty == 1.1
    assert processor.bert_tokenizer("sad")["input_ids"] and processor.image_processor.size["height"] == 32


def test_tower_weights_that_differ_are_reported(with_towers, tmp_path, caplog):
    weights = weights_of(with_towers)
    name = "model.vision_tower.vision_tower.vision_model.post_layernorm.weight"
    trained = weights[name] + 1
    save_file(weights | {name: trained}, with_towers / "model.safetensors")
    convert(with_towers, tmp_path / "directories", **TOWERS)
    assert "1 of the checkpoint's 101 tower tensors differ" in caplog.text and "--towers checkpoint" in caplog.text
    directory = convert(with_towers, tmp_path / "checkpoint", **TOWERS, towers="checkpoint")
    assert torch.equal(weights_of(directory)["model.vision_tower.post_layernorm.weight"], trained)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_are_kept(dtype, tmp_path):
    weights = {name: value.to(dtype) for name, value in load_file(BARE / "model.safetensors").items()}
    checkpoint = write_checkpoint(tmp_path / "half", weights)
    directory = convert(checkpoint, tmp_path / "new", **TOWERS)
    assert {value.dtype for value in weights_of(directory).values()} == {dtype}
    assert_same(weights_of(convert_back(directory, tmp_path / "back")), weights)


def save_sharded(weights, directory):
    names = list(weights)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    files = [f"model-{i}-of-00002.safetensors" for i in ("00001", "00002")]
    for file, part in zip(files, parts, strict=True):
        save_file({name: weights[name] for name in part}, directory / file)
    weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def save_bin(weights, directory):
    # As torch saves a tied model: the embeddings twice.
    torch.save(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}, directory / "pytorch_model.bin")


@pytest.mark.parametrize("save", [save_sharded, save_bin])
def test_other_weight_files(save, converted, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "other", load_file(BARE / "model.safetensors"), save)
    assert_same(weights_of(convert(checkpoint, tmp_path / "new", **TOWERS)), weights_of(converted))


def test_shards_are_written_and_load(monkeypatch, converted, tmp_path):
    monkeypatch.setattr(conversion, "SHARD_BYTES", 1 << 20)
    directory = convert(BARE, tmp_path / "new", **TOWERS)
    assert len(list(directory.glob("model-*.safetensors"))) > 3
    assert_same(weights_of(directory), weights_of(converted))
    model = AutoModelForCausalLM.from_pretrained(directory)
    expected = AutoModelForCausalLM.from_pretrained(converted)
    assert_same(model.state_dict(), expected.state_dict())


@pytest.mark.parametrize("save", [save_file, torch.save])
def test_weights_stay_in_their_files_until_they_are_written(save, tmp_path):
    def anonymous() -> int:  # bytes
        return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

    save({"a": torch.ones(1 << 24)}, tmp_path / f"pytorch_model.{'bin' if save is torch.save else 'safetensors'}")
    before = anonymous()
    weights = conversion.read_weights(tmp_path)
    assert weights["a"].sum() == 1 << 24
    assert anonymous() - before < 1 << 24, "a quarter of its bytes"


def test_a_large_model_is_written_in_shards(monkeypatch, tmp_path):
    monkeypatch.setattr(conversion, "SHARD_BYTES", 1 << 20)
    convert(BARE, tmp_path / "new", **TOWERS)
    files = list((tmp_path / "new").glob("*.safetensors"))
    assert len(files) > 1 and all(sum(t.nbytes for t in load_file(file).values()) <= 1 << 20 for file in files)
    HumanOmniQwen2ForCausalLM.from_pretrained(tmp_path / "new")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), r'Missing key.* "model.norm.weight"'),
        (lambda w: w.update(stranger=torch.zeros(1)), r'Unexpected key.* "stranger"'),
        (
            lambda w: w.update({"model.norm.weight": torch.zeros(3)}),
            r"size mismatch for model.norm.weight: .* torch.Size\(\[3\]\)",
        ),
    ],
)
def test_every_tensor_is_accounted_for(change, message, tmp_path):
    weights = load_file(BARE / "model.safetensors")
    change(weights)
    with pytest.raises(ConversionError, match=message):
        convert(write_checkpoint(tmp_path / "bad", weights), tmp_path / "new", **TOWERS)


@pytest.mark.parametrize("name", ["google/siglip-base-patch16-224", "/gone/siglip"])
@pytest.mark.parametrize(("tower", "key"), [("vision", "mm_vision_tower"), ("audio", "mm_audio_tower")])
def test_tower_names_that_are_no_directory(name, tower, key, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "named", load_file(BARE / "model.safetensors"))
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {key: name}))
    given = {other: path for other, path in TOWERS.items() if other != tower}
    with pytest.raises(ConversionError, match=f"{key} is '{name}'.*pass --{tower} DIR"):
        convert(checkpoint, tmp_path / "new", **given)
    with pytest.raises(ConversionError, match="pass --bert DIR"):
        convert(checkpoint, tmp_path / "newer", vision=TOWERS["vision"], audio=TOWERS["audio"])


def test_tower_names_that_are_directories(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "named", load_file(BARE / "model.safetensors"))
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"mm_vision_tower": str(TOWERS["vision"]), "mm_audio_tower": str(TOWERS["audio"])}
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert (convert(checkpoint, tmp_path / "new", bert=TOWERS["bert"]) / "model.safetensors").is_file()


def test_no_tower_weights_to_take_from_the_checkpoint(tmp_path):
    with pytest.raises(ConversionError, match="no tower weights"):
        convert(BARE, tmp_path / "new", **TOWERS, towers="checkpoint")


def test_a_full_directory_is_not_overwritten(converted):
    with pytest.raises(ConversionError, match="not empty"):
        convert(BARE, converted, **TOWERS)


# The released models' configurations (0.5B: R1-Omni-0.5B's config.json; 7B: Qwen2-7B with SigLIP-so400m-384).
WHISPER_LARGE = {
    **{"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120},
    **{"num_mel_bins": 128, "max_source_positions": 1500},
}
SMALL = {
    "config": {
        **{"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
        **{"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
        **{"mm_projector_type": "all_in_one_small", "num_frames": 8, "vision_config": {}},
    },
    "tokens": (392, 500),
    "grid": 14,
}
LARGE = {
    "config": {
        **{"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
        **{"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
        **{"mm_projector_type": "all_in_one", "num_frames": 16},
        "vision_config": {
            **{"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
            **{"image_size": 384, "patch_size": 14},
        },
    },
    "tokens": (16 * 14 * 14, 500),
    "grid": 27,
}


@pytest.mark.parametrize("size", [pytest.param(SMALL, id="0.5B"), pytest.param(LARGE, id="7B", marks=pytest.mark.slow)])
def test_released_sizes_on_the_meta_device(size, monkeypatch):
    monkeypatch.setenv("VERL_OMNI_SHARING", "0")  # which looks at what clips contain
    config = HumanOmniConfig(**size["config"], audio_config=WHISPER_LARGE)
    with torch.device("meta"):
        model = HumanOmniQwen2ForCausalLM(config).eval()
        frames = torch.zeros(1, config.num_frames, 3, config.vision_config.image_size, config.vision_config.image_size)
        patches = model.model.encode_video(frames)
        video = model.model.mm_projector(patches, torch.zeros(1, 3))
        audio = model.model.get_audio_features(torch.zeros(1, 128, 3000))
    assert patches.shape == (1, config.num_frames, size["grid"] ** 2, config.vision_config.hidden_size)
    assert video.shape == (1, size["tokens"][0], config.hidden_size)
    assert audio.shape == (1, size["tokens"][1], config.hidden_size)
    assert (config.num_video_tokens, config.num_audio_tokens) == size["tokens"]
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    hidden, width = config.hidden_size, config.vision_config.hidden_size
    assert shapes["model.mm_projector.s1_video.b1.conv1.conv.weight"] == (hidden, width, 1, 1)
    assert shapes["model.mm_projector.s1_video.b1.se.fc1.weight"] == (width // 4, hidden, 1, 1)
    assert shapes["model.mm_projector.s2_body.b2.se.fc2.weight"] == (hidden, hidden // 4, 1, 1)
    assert shapes["model.mm_projector.sampler_body.0.weight"] == (hidden, hidden, 2, 2, 2)
    assert shapes["model.bert_gate.0.weight"] == (3584, 768)
    assert shapes["model.audio_projector.0.weight"] == (hidden, 1280)
    depth = 4 if config.mm_projector_type == "all_in_one" else 2
    assert f"model.mm_projector.s1_video.b{depth}.conv1.conv.weight" in shapes
    assert f"model.mm_projector.s1_video.b{depth + 1}.conv1.conv.weight" not in shapes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_config": {"image_size": 384, "patch_size": 14}}, "27x27 grid, which all_in_one_small cannot halve"),
        ({"mm_projector_type": "all_in_one"}, "14x14 grid, which all_in_one cannot halve"),
        ({"mm_projector_type": "linear"}, "known are"),
        ({"mm_audio_projector_type": "linear"}, "known is"),
    ],
)
def test_configurations_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        HumanOmniConfig(**change)


def test_other_sizes_there_and_back(tmp_path):
    """14x14 patches, 128 mel bins, untied: a checkpoint of random weights."""
    new = {"hidden_size": 64, "tie_word_embeddings": False, "mm_hidden_size": 32, "audio_hidden_size": 16}
    original = json.loads((BARE / "config.json").read_text()) | new
    same = ("vocab_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    config = HumanOmniConfig(
        **{name: original[name] for name in same},
        hidden_size=64,
        tie_word_embeddings=False,
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        audio_config={
            **{"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32},
            **{"num_mel_bins": 128, "classifier_proj_size": 4},
        },
        bert_config=json.loads((TOWERS["bert"] / "config.json").read_text()),
    )
    model = HumanOmniQwen2ForCausalLM(config)
    weights = {conversion.to_original(name): value for name, value in model.state_dict().items()}
    checkpoint = write_checkpoint(tmp_path / "original", weights)
    (checkpoint / "config.json").write_text(json.dumps(original))
    towers = {name: shutil.copytree(path, tmp_path / name) for name, path in TOWERS.items()}
    for name, nested in (("vision", config.vision_config), ("audio", config.audio_config)):
        nested.save_pretrained(towers[name])
    preprocessor = json.loads((towers["vision"] / "preprocessor_config.json").read_text())
    preprocessor["size"] = {"height": 224, "width": 224}
    (towers["vision"] / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    directory = convert(checkpoint, tmp_path / "new", **towers, towers="checkpoint")
    assert AutoConfig.from_pretrained(directory).num_video_tokens == 392
    assert_same(AutoModelForCausalLM.from_pretrained(directory).state_dict(), model.state_dict())
    assert_same(weights_of(convert_back(directory, tmp_path / "back")), weights)
