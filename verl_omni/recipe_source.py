"""``+recipe=PATH`` on verl's command lines: a YAML file composed over verl's own configuration.

Hydra takes ``+recipe=…`` as a choice in a config group ``recipe``; the source below resolves that choice to a file, so
that defaults lists, interpolation, ``--cfg job`` and command-line overrides work on a recipe as on any Hydra config.
Its names are imported from ``verl_omni.recipe``: this module is run in the middle of Hydra's own import.
"""

from pathlib import Path
from types import ModuleType

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

GROUP = "recipe"


class RecipeError(ConfigCompositionException):
    """A recipe that cannot be read; the message names the file and the shipped recipes."""


def shipped() -> dict[str, Path]:
    """Recipes that come with the package, by name: inside it when installed, beside it in the source tree."""
    package = Path(__file__).parent
    folder = package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"
    return {file.stem: file for file in folder.glob("*.yaml")}


def resolve(name: str) -> Path:
    """The file behind ``+recipe=name``: a path, else a shipped recipe; ``RecipeError`` if there is neither."""
    path, recipes = Path(name).expanduser(), shipped()
    for candidate in (path, path.with_name(path.name + ".yaml"), recipes.get(name)):
        if candidate and candidate.is_file():
            return candidate
    raise RecipeError(
        f"no recipe {name!r}: there is no file {path.absolute()}, and the recipes shipped with verl_omni are "
        f"{', '.join(sorted(recipes))}; pass a path or one of these names, as in +recipe=r1omni"
    )


class RecipeSource(ConfigSource):
    """Hydra config source ``recipe://``: one group, whose options are files."""

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


def register(hydra_main: ModuleType) -> None:
    """Make ``+recipe=`` known to Hydra in this process; ``hydra_main`` is the module whose import brought us here."""
    for plugin in (RecipeSource, RecipeSearchPath):
        Plugins.instance().register(plugin)
