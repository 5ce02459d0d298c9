"""The wheel: all packages, recipes, page templates and entry points, found from anywhere."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from setuptools import find_packages

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOOK = """
import json
from importlib.metadata import entry_points, files, version
from importlib.resources import files as resources
import verl_omni
from verl_omni import recipe
print(json.dumps({
    "package": verl_omni.__file__,
    "version": [verl_omni.__version__, version("verl-r1-omni")],
    "recipes": {name: str(path) for name, path in recipe.shipped().items()},
    "page": sorted(f.name for f in resources("verl_omni.report").iterdir() if f.name.startswith("page.")),
    "entry points": {g: [p.value for p in entry_points(group=g, name="verl_omni")]
                     for g in ("verl.plugins", "vllm.general_plugins")},
    "licence": [str(f) for f in files("verl-r1-omni") if f.name == "LICENSE"],
}))
"""


def test_every_package_is_listed():
    packages = set(find_packages(str(ROOT), include=["verl_omni", "verl_omni.*"]))
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages | {"verl_omni.recipes"}


def test_every_other_file_is_package_data():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    shipped = {
        file for package, globs in patterns.items() if package != "verl_omni.recipes"
        for pattern in globs for file in (ROOT / package.replace(".", "/")).glob(pattern)
    }  # fmt: skip
    others = {
        file for file in (ROOT / "verl_omni").rglob("*.*") if file.is_file() and file.suffix not in (".py", ".pyc")
    }
    assert others == shipped


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools leaves a build/ directory beside what it builds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("verl_omni", "recipes"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = (sys.executable, "-m", "pip", "-q", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(out))
    run(*pip, cwd=source)
    [built] = out.glob("verl_r1_omni-*.whl")
    return built


@pytest.fixture(scope="module")
def target(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    pip = (sys.executable, "-m", "pip", "-q", "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    run(*pip, cwd=folder)
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {
        str(file.relative_to(ROOT)) for file in (ROOT / "verl_omni").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }  # fmt: skip
    assert names == sources | {f"verl_omni/recipes/{file.name}" for file in (ROOT / "recipes").glob("*.yaml")}


@pytest.mark.slow
def test_an_installed_wheel_finds_its_own_parts_from_anywhere(target, tmp_path):
    import json

    found = json.loads(run(sys.executable, "-c", LOOK, cwd=tmp_path, PYTHONPATH=str(target)))
    assert found["package"] == str(target / "verl_omni" / "__init__.py")
    assert found["version"][0] == found["version"][1]
    names = {file.stem for file in (ROOT / "recipes").glob("*.yaml")}
    assert found["recipes"] == {name: str(target / "verl_omni" / "recipes" / f"{name}.yaml") for name in names}
    assert found["page"] == ["page.css", "page.html.jinja", "page.js", "page.py"]
    assert found["entry points"] == {
        "verl.plugins": ["verl_omni.plugin"],
        "vllm.general_plugins": ["verl_omni.plugin:register_vllm"],
    }
    assert found["licence"], "the wheel has no LICENSE"


@pytest.mark.slow
def test_an_installed_wheel_composes_a_recipe_of_ones_own(target, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [/recipe/r1omni_cpu, _self_]\ndata: {seed: 7}\n"
    )
    command = (sys.executable, "-m", "verl.trainer.main_ppo", "+recipe=mine.yaml", "trainer.logger=[file]")
    shown = run(*command, "--cfg", "job", cwd=tmp_path, PYTHONPATH=str(target))
    config = yaml.safe_load(shown[shown.index("actor_rollout_ref:") :])
    assert (config["data"]["seed"], config["trainer"]["device"], config["trainer"]["logger"]) == (7, "cpu", ["file"])
    assert config["data"]["custom_cls"]["name"] == "OmniRLHFDataset"
    assert config["reward"]["reward_manager"]["name"] == "accuracy_format"
