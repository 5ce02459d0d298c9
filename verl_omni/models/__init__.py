"""Model families. Importing this package registers them with transformers' Auto classes."""

from .families import FOLDERS, load
from .humanomni.configuration import HumanOmniConfig
from .humanomni.modeling import HumanOmniQwen2ForCausalLM
from .humanomni.processing import HumanOmniProcessor

for folder in FOLDERS.values():
    load(folder)

__all__ = ["HumanOmniConfig", "HumanOmniProcessor", "HumanOmniQwen2ForCausalLM"]
