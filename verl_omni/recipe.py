"""`+recipe=PATH` on verl's command lines: a YAML file composed over verl's own configuration.

Hydra takes `+recipe=…` as a choice in a config group `recipe`; the source below resolves that choice to a file, so that
defaults lists, interpolation, `--cfg job` and command-line overrides work on a recipe as on any Hydra config.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from huggingface_hub.constants import HF_HUB_CACHE
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.experimental.callback import Callback
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from verl_omni.checkpoints import restore_tracker

GROUP = "recipe"


class RecipeError(ConfigCompositionException):
    """A recipe that cannot be read; the message names the file and the shipped recipes."""


def shipped() -> dict[str, Path]:
    """Recipes that come with the package, by name: inside it when installed, beside it in the source tree."""
    package = Path(__file__).parent
    folder = package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"
    return {file.stem: file for file in folder.glob("*.yaml")}


def resolve(name: str) -> Path:
    """The file behind `+recipe=name`: a path (absolute, or relative to the working directory), else a shipped recipe.

    Raises:
        RecipeError: neither exists.
    """
    path = Path(name).expanduser()
    for candidate in (path, path.with_name(path.name + ".yaml")):
        if candidate.is_file():
            return candidate
    recipes = shipped()
    if name in recipes:
        return recipes[name]
    raise RecipeError(
        f"no recipe {name!r}: there is no file {path.absolute()}, and the recipes shipped with verl_omni are "
        f"{', '.join(sorted(recipes))}; pass a path or one of these names, as in +recipe=r1omni"
    )


class RecipeSource(ConfigSource):
    """Hydra config source `recipe://`: one group, whose options are files."""

    @staticmethod
    def scheme() -> str:
        return "recipe"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path.rstrip("/") == GROUP

    def is_config(self, config_path: str) -> bool:
        # Anything below the group is ours, so that a missing file gets our error and not Hydra's guess at group names.
        return config_path.startswith(f"{GROUP}/")

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return sorted(shipped()) if self.is_group(config_path) else []

    def load_config(self, config_path: str) -> ConfigResult:
        file = resolve(config_path.removeprefix(f"{GROUP}/"))
        try:
            config = OmegaConf.load(file)
            header = self._get_header_dict(file.read_text(encoding="utf-8"))
        except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
            raise RecipeError(f"recipe {file} cannot be read as YAML: {error}") from error
        if not isinstance(config, DictConfig):
            raise RecipeError(f"recipe {file} must hold keys and values like verl's configuration, not a list")
        if header.get("package") != "_global_":
            raise RecipeError(f"recipe {file} must start with the line `# @package _global_`, or verl would not see it")
        return ConfigResult(config=config, path=str(file), provider=self.provider, header=header)


class RecipeSearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="verl_omni", path="recipe://")


INPUTS = ("model.path", "actor_rollout_ref.model.path", "data.train_files", "data.val_files")


class CheckPaths(Callback):
    """Hydra callback that ends the command before Ray starts if a model or rows file is not there.

    It also restores the file in which verl looks for the last checkpoint, should a kill have left it empty.

    A recipe names it under `hydra.callbacks`. A model may be in the hub's cache, too; a path with a scheme (`hdfs://`)
    is verl's to fetch and not looked for.

    Args:
        remedy: how a user of the recipe gets these files.
    """

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy

    def on_job_start(self, config: DictConfig, **_: object) -> None:
        restore_tracker(config.trainer.default_local_dir)
        missing = [f"{key}: {path}" for key in INPUTS for path in _paths(config, key) if not Path(path).exists()]
        if missing:  # Hydra turns any other exception of a callback into a warning
            raise SystemExit(
                "\n".join(
                    [f"not there, seen from {os.getcwd()}:", *missing, f"{self.remedy}; or name others: KEY=PATH"]
                )
            )


def _paths(config: DictConfig, key: str) -> list[str]:
    value = OmegaConf.select(config, key)
    paths = [value] if isinstance(value, str) else list(value or [])
    if key.endswith("model.path"):
        paths = [path for path in paths if not (Path(HF_HUB_CACHE) / f"models--{path.replace('/', '--')}").is_dir()]
    return [os.path.expanduser(path) for path in paths if "://" not in path]


# key -> value that cannot work with this model, and why.
FSDP1 = ("fsdp", "FSDP1 flattens the frozen towers and the trained layers into one parameter; take fsdp2")
REFUSED = {
    "actor_rollout_ref.actor.strategy": FSDP1,
    "engine.strategy": FSDP1,
    "skip.rollout_tq.enable": (
        True,
        "the dumped rollouts refer to clips that are gone by then; VERL_OMNI_SHARING=0 in the environment dumps all",
    ),
}


class CheckSettings(Callback):
    """Hydra callback that ends the command before Ray starts if verl has a setting that this model cannot run with."""

    def on_job_start(self, config: DictConfig, **_: object) -> None:
        from verl_omni.media.cache import enabled  # not for each Hydra command: it loads the decoders

        values = {key: OmegaConf.select(config, key) for key in REFUSED}
        if not enabled():
            del values["skip.rollout_tq.enable"]
        if wrong := [f"{key}={value}: {REFUSED[key][1]}" for key, value in values.items() if value == REFUSED[key][0]]:
            raise SystemExit("\n".join(["settings that cannot work with HumanOmni:", *wrong]))


def composed(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """What verl's trainer gets from ``+recipe=name`` and overrides: ``main_ppo`` if the recipe has rollouts, else
    ``sft_trainer``. Hydra's own part is in it, for ``run_start_checks``.

    Raises:
        HydraException: a recipe or an override that cannot be composed; ``RecipeError`` is one.
    """
    from hydra import compose, initialize_config_module  # this module is imported in the middle of Hydra's own import

    with initialize_config_module("verl.trainer.config", version_base=None):
        grpo = "actor_rollout_ref" in compose("sft_trainer_engine", [f"+recipe={name}"])
        trainer = "ppo_trainer" if grpo else "sft_trainer_engine"
        return compose(trainer, [f"+recipe={name}", *overrides], return_hydra_config=True)


def run_start_checks(config: DictConfig) -> None:
    """Run the recipe's callbacks as Hydra does before a trainer's start; ``SystemExit`` says what is wrong."""
    from hydra.utils import instantiate

    for callback in config.hydra.callbacks.values():
        instantiate(callback).on_job_start(config=config)


def register(hydra_main: ModuleType) -> None:
    """Make `+recipe=` known to Hydra in this process; `hydra_main` is the module whose import brought us here."""
    for plugin in (RecipeSource, RecipeSearchPath):
        Plugins.instance().register(plugin)
