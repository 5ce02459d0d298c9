"""Where model families are found: all that trainer, evaluation and commands know of them.

A family is a folder beside this file with a module ``family``, whose import registers model and processor with
transformers. It has (``docs/your-model.md``)

    load_processor(directory, **kwargs)   with ``num_frames``, ``frame_format()``, ``apply_chat_template`` and call as
                                          HumanOmni's; where a position is more than a number, ``get_rope_index`` and
                                          ``get_rope_index_kwargs``, as verl calls them; where vLLM does not take ids
                                          with expanded placeholders, ``collapse_placeholders``
    load_model(directory, **kwargs)       for ``generate``; verl finds it by transformers' Auto classes
    build_tiny(out_dir, seed=0)           writes a random model of a million parameters, for the demo and the tests
    owns(inputs)                          whether these model inputs of a prompt's media are the processor's
    text_config(config)                   the language model's; FLOPs are counted as Qwen2's, the towers left out
    placeholders(config)                  ids that stand for media or begin them: an answer without media has none
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from verl_omni.errors import InputError

# `model_type` in config.json -> the family's folder, which is also its name on command lines.
FOLDERS = {"HumanOmni_qwen2": "humanomni", "qwen2_5_omni": "qwen2_5_omni"}


def load(folder: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{folder}.family")


def loaded() -> list[ModuleType]:
    """The families of the models that this process has asked for, and HumanOmni."""
    modules = (sys.modules.get(f"{__package__}.{folder}.family") for folder in FOLDERS.values())
    return [module for module in modules if module]


def family_of(config: Any) -> ModuleType | None:
    """The family of a configuration of transformers; None for a model that is none of ours."""
    folder = FOLDERS.get(getattr(config, "model_type", ""))
    return load(folder) if folder else None


def family_in(directory: str | Path, **kwargs: Any) -> ModuleType:
    """The family of a model directory; ``InputError`` if it is none of ours. ``**kwargs`` go to ``AutoConfig``."""
    from transformers import AutoConfig

    model_type = AutoConfig.from_pretrained(directory, **kwargs).model_type
    if model_type not in FOLDERS:
        raise InputError(f"{directory}: model_type {model_type!r} in its config.json; known are {', '.join(FOLDERS)}")
    return load(FOLDERS[model_type])


def register_flops(flops_counter: Any) -> None:
    """Register the families with ``verl.utils.flops_counter`` (metric ``perf/mfu``); lower bounds, without towers."""
    for model_type, folder in FOLDERS.items():
        # No **kwargs: verl looks for them, and would pass the images' lengths, which Qwen2's does not take.
        def estimate(config: Any, tokens: int, lengths: list[int], seconds: float, folder: str = folder) -> float:
            return flops_counter.ESTIMATE_FUNC["qwen2"](load(folder).text_config(config), tokens, lengths, seconds)

        flops_counter.ESTIMATE_FUNC[model_type] = estimate
