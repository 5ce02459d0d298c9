"""What a model family provides, and where it is found: all that trainer, evaluation and commands know of families.

A family is a folder beside this file with a module ``family`` that has what ``Family`` lists; ``docs/your-model.md``.
"""

import importlib
import sys
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

from verl_omni.errors import InputError

# `model_type` in config.json -> the family's folder, which is also its name on command lines.
FOLDERS = {"HumanOmni_qwen2": "humanomni", "qwen2_5_omni": "qwen2_5_omni"}


class Family(Protocol):
    """The module ``verl_omni.models.<folder>.family``; importing it registers model and processor with transformers."""

    def load_processor(self, directory: str | Path, **kwargs: Any) -> Any:
        """The processor, with ``num_frames``, ``frame_format()``, ``apply_chat_template`` and call as HumanOmni's.

        Where a position is more than a number: ``get_rope_index`` and ``get_rope_index_kwargs``, as verl calls them.
        Where vLLM does not take ids with expanded placeholders: ``collapse_placeholders``.
        """

    def load_model(self, directory: str | Path, **kwargs: Any) -> Any:
        """The model, for ``generate``; verl finds it by transformers' Auto classes."""

    def build_tiny(self, out_dir: str | Path, seed: int = 0) -> Path:
        """Write a random model of a million parameters, for the demo and the tests."""

    def owns(self, inputs: dict) -> bool:
        """Whether these model inputs of a prompt's media are the processor's."""

    def text_config(self, config: Any) -> Any:
        """The language model's part of the configuration; FLOPs are counted as Qwen2's, the towers left out."""

    def placeholders(self, config: Any) -> set[int]:
        """Ids that stand for media in a prompt, or begin them: an answer without media must have none."""


@cache
def load(folder: str) -> Family:
    return cast(Family, importlib.import_module(f"{__package__}.{folder}.family"))


def loaded() -> list[Family]:
    """The families of the models that this process has asked for, and HumanOmni."""
    modules = (sys.modules.get(f"{__package__}.{folder}.family") for folder in FOLDERS.values())
    return [cast(Family, module) for module in modules if module]


def family_of(config: Any) -> Family | None:
    """The family of a configuration of transformers; None for a model that is none of ours."""
    folder = FOLDERS.get(getattr(config, "model_type", ""))
    return load(folder) if folder else None


def family_in(directory: str | Path) -> Family:
    """The family of a model directory.

    Raises:
        InputError: none of ours.
    """
    from transformers import AutoConfig

    model_type = AutoConfig.from_pretrained(directory).model_type
    if model_type not in FOLDERS:
        raise InputError(f"{directory}: model_type {model_type!r} in its config.json; known are {', '.join(FOLDERS)}")
    return load(FOLDERS[model_type])


def register_flops(flops_counter: Any) -> None:
    """Register the families with verl's FLOPs counter (metric ``perf/mfu``); lower bounds, without the towers.

    Args:
        flops_counter: ``verl.utils.flops_counter``.
    """
    for model_type, folder in FOLDERS.items():
        # No **kwargs: verl looks for them, and would pass the images' lengths, which Qwen2's does not take.
        def estimate(config: Any, tokens: int, lengths: list[int], seconds: float, folder: str = folder) -> float:
            return flops_counter.ESTIMATE_FUNC["qwen2"](load(folder).text_config(config), tokens, lengths, seconds)

        flops_counter.ESTIMATE_FUNC[model_type] = estimate
