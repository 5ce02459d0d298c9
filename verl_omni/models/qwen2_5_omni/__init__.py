"""Qwen2.5-Omni: models and processors are those of transformers and vLLM; this is what verl needs around them."""

from . import without_torchvision  # noqa: F401  (before upstream's processors look for their parts)
