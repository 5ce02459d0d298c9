"""A campaign of damaged checkpoints: each is refused in a sentence that names the file, and leaves nothing behind."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from originals import HUMANOMNI, TOWERS
from safetensors.torch import load_file, save_file

import verl_omni.models  # noqa: F401
from verl_omni.models.humanomni import conversion
from verl_omni.models.humanomni.conversion import ConversionError, convert, convert_back

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def cut(name: str, share: float):
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return damage


def content(name: str, new: bytes):
    return lambda folder: (folder / name).write_bytes(new)


def gone(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def setting(key: str, value: object = None, name: str = CONFIG):
    def damage(folder: Path) -> None:
        settings = json.loads((folder / name).read_text())
        settings.pop(key, None)
        (folder / name).write_text(json.dumps(settings if value is None else settings | {key: value}))

    return damage


def tensor(name: str, change):
    def damage(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        value = change(weights.pop(name))
        save_file(weights if value is None else weights | {name: value}, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def poisoned(value: float):
    def change(old: torch.Tensor) -> torch.Tensor:
        old.view(-1)[-1] = value
        return old

    return change


def as_bin(new: bytes):
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / "pytorch_model.bin").write_bytes(new)

    return damage


def odd_header(header: bytes):
    return content(WEIGHTS, len(header).to_bytes(8, "little") + header)


NORM, EMBEDDINGS = "model.norm.weight", "model.embed_tokens.weight"
BOTH_WAYS = {
    "weights cut short": cut(WEIGHTS, 0.5),
    "weights cut in the header": cut(WEIGHTS, 0.001),
    "weights empty": content(WEIGHTS, b""),
    "weights of zeros": content(WEIGHTS, bytes(1000)),
    "weights an error page": content(WEIGHTS, b"<html>404</html>" * 9),
    "weights a pointer": content(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n"),
    "weights with a huge header": content(WEIGHTS, b"\xff" * 64),
    "weights without tensors": odd_header(b"{}"),
    "weights' header no JSON": odd_header(b'{"model.norm.weight": '),
    "weights gone": gone(WEIGHTS),
    "weights no pickle": as_bin(b"no pickle at all"),
    "weights an empty pickle": as_bin(b""),
    "weights that would run code": as_bin(b"cos\nsystem\n(S'touch /tmp/owned'\ntR."),
    "a tensor gone": tensor(NORM, lambda old: None),
    "a tensor of another shape": tensor(NORM, lambda old: old[:-1].clone()),
    "a tensor of another rank": tensor(NORM, lambda old: old[None].clone()),
    "a tensor of integers": tensor(NORM, lambda old: old.to(torch.int64)),
    "a tensor with NaN": tensor(NORM, poisoned(float("nan"))),
    "a tensor with infinity": tensor(EMBEDDINGS, poisoned(float("inf"))),
    "the embeddings gone": tensor(EMBEDDINGS, lambda old: None),
    "an index that lists more": content("model.safetensors.index.json", b'{"weight_map": {"lost": "b.safetensors"}}'),
    "an index without a map": content("model.safetensors.index.json", b"{}"),
    "an index that is no JSON": content("model.safetensors.index.json", b"{"),
    "config empty": content(CONFIG, b""),
    "config cut short": cut(CONFIG, 0.5),
    "config a list": content(CONFIG, b"[1]"),
    "config not UTF-8": content(CONFIG, b"\xff\xfe{}"),
    "config gone": gone(CONFIG),
    "config with a word for a width": setting("hidden_size", "wide"),
    "config with another width": setting("hidden_size", 64),
    "config with no layers": setting("num_hidden_layers", -1),
    "config with another depth": setting("num_hidden_layers", 7),
    "config with another projector": setting("mm_projector_type", "linear"),
    "config with another vocabulary": setting("vocab_size", 3),
    "tokenizer cut short": cut("tokenizer.json", 0.5),
    "tokenizer a list": content("tokenizer.json", b"[]"),
}
TO_NEW = BOTH_WAYS | {
    "config without a vocabulary": setting("vocab_size"),
    "config with a list for a vocabulary": setting("vocab_size", [1]),
    "another JSON file damaged": content("generation_config.json", b"{"),
    "tokenizer gone": gone("tokenizer.json", "vocab.json", "merges.txt"),
}
TO_ORIGINAL = BOTH_WAYS | {
    "original_files gone": setting("original_files"),
    "original_files a list": setting("original_files", ["config.json"]),
    "original_files outside": setting("original_files", {"../outside.json": {}}),
    "original_files anywhere": setting("original_files", {"/tmp/verl_omni_outside.json": {}}),
    "original_files over the weights": setting("original_files", {WEIGHTS: {}}),
    "original_tensors gone": setting("original_tensors"),
    "original_tensors incomplete": setting("original_tensors", {"towers": True}),
}


def refused(run, source: Path, tmp_path: Path) -> None:
    before = {*tmp_path.rglob("*")}
    with pytest.raises(ConversionError) as error:
        run()
    assert str(source) in str(error.value) or "not a number" in str(error.value) or "vocab_size" in str(error.value)
    assert {*tmp_path.rglob("*")} == before
    assert not Path("/tmp/verl_omni_outside.json").exists() and not Path("/tmp/owned").exists()


@pytest.mark.parametrize("kind", TO_NEW)
def test_a_damaged_original_is_refused(kind: str, tmp_path: Path) -> None:
    source = shutil.copytree(HUMANOMNI / "ckpt_no_towers", tmp_path / "source")
    TO_NEW[kind](source)
    refused(lambda: convert(source, tmp_path / "out", **TOWERS), source, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TO_ORIGINAL)
def test_a_damaged_directory_is_refused_on_the_way_back(kind: str, converted: Path, tmp_path: Path) -> None:
    source = shutil.copytree(converted, tmp_path / "source")
    TO_ORIGINAL[kind](source)
    refused(lambda: convert_back(source, tmp_path / "out"), source, tmp_path)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors", "vocab.txt"])
def test_a_damaged_tower_is_refused(tower: str, name: str, tmp_path: Path) -> None:
    source = shutil.copytree(TOWERS[tower], tmp_path / "tower")
    if not (source / name).is_file() or (tower, name) == ("bert", "model.safetensors"):
        pytest.skip(f"{tower} does not have, or need, {name}")
    cut(name, 0.3)(source)
    towers = TOWERS | {tower: source}
    refused(lambda: convert(HUMANOMNI / "ckpt_no_towers", tmp_path / "out", **towers), source, tmp_path)


@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing_under_its_name(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; import verl_omni.models\n"
        "from verl_omni.models.humanomni import conversion\n"
        "conversion.shutil.copy = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"conversion.convert({str(HUMANOMNI / 'ckpt_no_towers')!r}, {str(tmp_path / 'out')!r}, *sys.argv[1:])"
    )
    killed = subprocess.run([sys.executable, "-c", code, *map(str, TOWERS.values())], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert not (tmp_path / "out.partial/config.json").exists()  # without it, nothing takes the folder for a model
    convert(HUMANOMNI / "ckpt_no_towers", tmp_path / "out", **TOWERS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out/config.json").is_file()
    assert conversion.read_json(tmp_path / "out/config.json")["architectures"]
