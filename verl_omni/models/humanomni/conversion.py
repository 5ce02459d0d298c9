"""Original R1-Omni checkpoints <-> self-contained directories.

An original checkpoint names its towers by paths in ``config.json``, which users edit by hand, and ignores the tower
weights that it may carry. A converted directory holds everything under one roof. The original's small JSON files travel
inside the new ``config.json`` (``original_files``), through training too, so that the way back needs nothing else.

Tensors stay in their files, mapped into memory, until they are written in shards.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import load_state_dict_from_file, save_torch_state_dict
from transformers import AutoConfig, BertTokenizer, Qwen2Tokenizer, WhisperFeatureExtractor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from verl_omni.errors import InputError

from .configuration import HumanOmniConfig
from .modeling import HumanOmniQwen2ForCausalLM
from .processing import AUDIO_TOKEN, VIDEO_TOKEN, HumanOmniProcessor

logger = logging.getLogger(__name__)

SHARD_BYTES = 4 << 30
# original prefix -> ours; all other names are the same
RENAMED = {
    "model.vision_tower.vision_tower.vision_model.": "model.vision_tower.",
    "model.audio_tower.audio_tower.": "model.audio_tower.",
}
TOWERS = tuple(RENAMED.values())
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # a ``.bin`` checkpoint stores tied ones twice
# Whisper's classification head is in the original's class, but in no released Whisper, and nothing uses it.
UNUSED_HEAD = ("model.audio_tower.projector.", "model.audio_tower.classifier.")


class ConversionError(InputError):
    """A checkpoint that is not what it should be; the message says what was found and what to do."""


Weights = dict[str, torch.Tensor]


def convert(
    checkpoint: str | Path,
    out: str | Path,
    vision: str | Path | None = None,
    audio: str | Path | None = None,
    bert: str | Path | None = None,
    towers: str = "directories",
) -> Path:
    """Turn an original checkpoint into a self-contained directory ``out``, which is returned.

    Args:
        checkpoint: directory with ``config.json``, a tokenizer, and safetensors or ``.bin`` weights, sharded or not.
        vision, audio: SigLIP's and Whisper's directories; default: those that ``config.json`` names.
        bert: BERT's directory, for its configuration and tokenizer (its weights come from the checkpoint).
        towers: ``directories`` takes the towers' weights from there, as the original does; ``checkpoint`` from
            the checkpoint.

    Raises:
        ConversionError: missing directories, tensors missing, unexpected or of the wrong shape, ``out`` not empty.
    """
    checkpoint, out = Path(checkpoint), unused(out)
    original = read_json(checkpoint / "config.json")
    given = {"vision": vision, "audio": audio, "bert": bert}
    dirs = {name: tower_directory(name, path, original) for name, path in given.items()}
    processor = build_processor(checkpoint, dirs, original)
    with reading(checkpoint / "config.json"), torch.device("meta"):
        config = build_config(original, dirs, processor)
        model = HumanOmniQwen2ForCausalLM(config)
    weights = {to_new(name): tensor for name, tensor in read_weights(checkpoint).items()}
    large = ("vocab.json", "tokenizer.json")  # no configurations, nor is the weights' index
    small = [f for f in sorted(checkpoint.glob("*.json")) if f.name not in large and ".index." not in f.name]
    config.original_files = {file.name: read_json(file) for file in small}
    has_towers = any(name.startswith(TOWERS) for name in weights)
    config.original_tensors = {"towers": has_towers, "lm_head": HEAD in weights}
    if EMBEDDINGS not in weights:
        raise ConversionError(f"{checkpoint}: no {EMBEDDINGS} in it: these are not HumanOmni's weights")
    dtype = weights[EMBEDDINGS].dtype
    if towers == "directories":
        weights = use_directories(weights, dirs, dtype)
    elif not has_towers:
        raise ConversionError(f"{checkpoint} has no tower weights: leave --towers checkpoint out")
    for name, tensor in model.state_dict().items():
        if name.startswith(UNUSED_HEAD) and name not in weights:  # zeros; the original initialises it at random
            weights[name] = torch.zeros_like(tensor, dtype=dtype, device="cpu")
    if config.tie_word_embeddings and HEAD in weights and not torch.equal(weights.pop(HEAD), weights[EMBEDDINGS]):
        raise ConversionError(
            f"config.json says tie_word_embeddings, but {HEAD} is not {EMBEDDINGS}: set it to false to keep both"
        )
    check_tensors(weights, model, checkpoint)

    with written_aside(out) as folder:
        save_torch_state_dict(weights, folder, max_shard_size=SHARD_BYTES)
        processor.save_pretrained(folder)
        if (generation := checkpoint / "generation_config.json").is_file():
            shutil.copy(generation, folder)
        config.save_pretrained(folder)
    return out


def convert_back(directory: str | Path, out: str | Path) -> Path:
    """Write the original layout of a converted (and perhaps since trained) ``directory`` to ``out``.

    Tower weights are written if the original checkpoint had them.

    Raises:
        ConversionError: ``directory`` does not stem from an original checkpoint, ``out`` not empty.
    """
    directory, out = Path(directory), unused(out)
    with reading(directory / "config.json"), torch.device("meta"):
        config = HumanOmniConfig.from_pretrained(directory)
        model = HumanOmniQwen2ForCausalLM(config)
    if not isinstance(config.original_files, dict):
        raise ConversionError(f"{directory}/config.json has no original_files: it does not stem from `convert`")
    if odd := [name for name in config.original_files if Path(name).name != name or not name.endswith(".json")]:
        raise ConversionError(f"{directory}/config.json: original_files has {odd[0]!r}, not the name of a JSON file")
    if not {"towers", "lm_head"} <= (config.original_tensors or {}).keys():
        raise ConversionError(f"{directory}/config.json: original_tensors without towers and lm_head")
    weights = read_weights(directory)
    check_tensors(weights, model, directory)
    if config.original_tensors["lm_head"] and config.tie_word_embeddings:
        weights[HEAD] = weights[EMBEDDINGS].clone()
    if not config.original_tensors["towers"]:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(TOWERS)}
    with written_aside(out) as folder:
        originals = {to_original(name): tensor for name, tensor in weights.items()}
        save_torch_state_dict(originals, folder, max_shard_size=SHARD_BYTES)
        with reading(directory):
            write_tokenizer(directory, folder)
        for name, content in config.original_files.items():
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return out


def unused(out: str | Path) -> Path:
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConversionError(f"{out} is not empty: remove it, or choose another --out")
    return out


@contextmanager
def reading(source: Path) -> Iterator[None]:
    """Turn whatever the libraries raise for a damaged file (of any kind) into an error that names it."""
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:
        said = (str(error).strip() or "nothing more is said").splitlines()[0]
        raise ConversionError(f"{source}: cannot be used ({type(error).__name__}: {said}); get it again") from error


def read_json(path: Path) -> dict:
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ConversionError(f"{path}: keys and values expected, a {type(content).__name__} found; get it again")
    return content


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A folder that becomes ``out`` when all is written: what a killed run leaves is named ``OUT.partial``."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_tokenizer(directory: Path, out: Path) -> None:
    """The vocabulary's files, for slow and fast tokenizers, without the placeholders."""
    tokenizer = Qwen2Tokenizer.from_pretrained(directory).backend_tokenizer
    tokenizer.model.save(str(out))  # vocab.json, merges.txt
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in (VIDEO_TOKEN, AUDIO_TOKEN)]
    (out / "tokenizer.json").write_text(json.dumps(content, indent=2, ensure_ascii=False))


def to_new(name: str, renamed: dict[str, str] = RENAMED) -> str:
    old = next((prefix for prefix in renamed if name.startswith(prefix)), "")
    return renamed.get(old, "") + name.removeprefix(old)


to_original = partial(to_new, renamed={new: original for original, new in RENAMED.items()})


def tower_directory(name: str, given: str | Path | None, original: dict) -> Path:
    """The directory of a tower: the one given, else the one that the original's ``config.json`` names."""
    if given is None and name == "bert":
        raise ConversionError("which BERT? Its tokenizer is in no checkpoint: pass --bert DIR (bert-base-uncased)")
    key = f"mm_{name}_tower"
    source, path = (f"--{name}", given) if given else (f"config.json's {key}", original.get(key, ""))
    if not (Path(str(path)) / "config.json").is_file():
        raise ConversionError(f"{source} is {str(path)!r}, no directory with a config.json here: pass --{name} DIR")
    return Path(path)


def build_processor(checkpoint: Path, dirs: dict[str, Path], original: dict) -> HumanOmniProcessor:
    with reading(checkpoint):
        tokenizer = Qwen2Tokenizer.from_pretrained(checkpoint)
        size, frames = int(original["vocab_size"]), int(original.get("num_frames", HumanOmniConfig.num_frames))
    if not tokenizer.tokenize("a"):  # without its files it loads all the same, with special tokens alone
        raise ConversionError(f"{checkpoint}: no tokenizer of Qwen2's (tokenizer.json, or vocab.json, merges.txt)")
    tokenizer.chat_template = None  # the original's is Qwen2-VL's; the processor brings HumanOmni's
    tokenizer.add_tokens([VIDEO_TOKEN, AUDIO_TOKEN], special_tokens=True)
    if len(tokenizer) > size:
        raise ConversionError(f"{len(tokenizer)} tokens with the two placeholders, vocab_size {size}: no ids are left")
    with reading(dirs["bert"]):
        bert_tokenizer = BertTokenizer.from_pretrained(dirs["bert"])
        bert = AutoConfig.from_pretrained(dirs["bert"])
        bert_tokenizer.model_max_length = min(bert_tokenizer.model_max_length, bert.max_position_embeddings)
    if len(bert_tokenizer) != bert.vocab_size:
        raise ConversionError(f"{dirs['bert']}: {len(bert_tokenizer)} words, {bert.vocab_size} by its config.json")
    with reading(dirs["vision"]):
        images = SiglipImageProcessorPil.from_pretrained(dirs["vision"])
        patch_size = vision_config(dirs["vision"]).patch_size
    with reading(dirs["audio"]):
        sounds = WhisperFeatureExtractor.from_pretrained(dirs["audio"])
    return HumanOmniProcessor(images, sounds, tokenizer, bert_tokenizer, patch_size=patch_size, num_frames=frames)


def vision_config(directory: Path):
    """SigLIP's vision configuration, alone or inside that of the whole SigLIP."""
    config = AutoConfig.from_pretrained(directory)
    return config.vision_config if config.model_type == "siglip" else config


def build_config(original: dict, dirs: dict[str, Path], processor: HumanOmniProcessor) -> HumanOmniConfig:
    known = {field.name for field in fields(HumanOmniConfig)} - {"transformers_version"}
    known |= {"rope_theta", "rope_scaling", "torch_dtype"}
    return HumanOmniConfig(
        **{name: value for name, value in original.items() if name in known},
        vision_config=vision_config(dirs["vision"]),
        audio_config=AutoConfig.from_pretrained(dirs["audio"]),
        bert_config=AutoConfig.from_pretrained(dirs["bert"]),
        video_token_id=processor.video_token_id,
        audio_token_id=processor.audio_token_id,
    )


def read_weights(directory: Path) -> Weights:
    """The tensors of a directory's weight files (safetensors, else ``.bin``), mapped into memory."""
    files = sorted(directory.glob("*.safetensors")) or sorted(directory.glob("pytorch_model*.bin"))
    if not files:
        raise ConversionError(f"{directory} has no *.safetensors and no pytorch_model*.bin")
    weights: Weights = {}
    for file in files:
        with reading(file):
            tensors = load_state_dict_from_file(file, map_location="cpu", mmap=True, safe=file.suffix != ".bin")
        if twice := sorted(weights.keys() & tensors.keys()):
            raise ConversionError(f"{file}: tensors that another file of {directory} has, too: {', '.join(twice)}")
        weights |= tensors
    for index in directory.glob("*.index.json"):
        with reading(index):
            missing = sorted(read_json(index)["weight_map"].keys() - weights.keys())
        if missing:
            raise ConversionError(f"{index} lists tensors that are in no file: {', '.join(missing)}")
    return weights


def use_directories(weights: Weights, dirs: dict[str, Path], dtype: torch.dtype) -> Weights:
    """``weights`` with the towers' from their directories, cast to the checkpoint's ``dtype`` as the original does."""
    found = {
        **tower_weights(dirs["vision"], "vision_model.", "model.vision_tower.", dtype),
        **tower_weights(dirs["audio"], "encoder.", "model.audio_tower.encoder.", dtype),
    }
    both = sorted(found.keys() & weights.keys())
    if different := [name for name in both if not torch.equal(found[name], weights[name])]:
        logger.warning(
            "%d of the checkpoint's %d tower tensors differ from the directories' (first: %s). The directories' are "
            "used, as the original does; --towers checkpoint takes the others",
            *(len(different), len(both), different[0]),
        )
    return {n: t for n, t in weights.items() if not n.startswith(TOWERS) or n.startswith(UNUSED_HEAD)} | found


def tower_weights(directory: Path, prefix: str, new_prefix: str, dtype: torch.dtype) -> Weights:
    """A tower's tensors out of a directory that may hold the whole SigLIP or Whisper."""
    weights = {name.removeprefix("model."): tensor for name, tensor in read_weights(directory).items()}
    return {n.replace(prefix, new_prefix, 1): t.to(dtype) for n, t in weights.items() if n.startswith(prefix)}


def check_tensors(weights: Weights, model: HumanOmniQwen2ForCausalLM, source: Path) -> None:
    """``ConversionError`` unless ``weights`` are numbers, and are those of ``model``, which lies on the meta device."""
    odd = [name for name, tensor in weights.items() if not (tensor.is_floating_point() and tensor.isfinite().all())]
    if odd:
        raise ConversionError(f"{source}: not a number, infinite, or whole numbers: {', '.join(odd)}; get it again")
    head = {HEAD: weights[EMBEDDINGS]} if model.config.tie_word_embeddings and EMBEDDINGS in weights else {}
    try:
        model.load_state_dict(weights | head, assign=True)
    except RuntimeError as error:  # it lists all tensors
        found = " ".join(str(error).split())
        raise ConversionError(f"{source}: tensors do not fit the configuration, or are damaged; {found}") from error
