"""Model families. Importing this package makes HumanOmni known to transformers' Auto classes.

A family around a model of transformers is loaded when such a model is asked for: other runs keep theirs as it is.
"""

from . import families
from .humanomni.configuration import HumanOmniConfig
from .humanomni.modeling import HumanOmniQwen2ForCausalLM
from .humanomni.processing import HumanOmniProcessor

families.load("humanomni")

__all__ = ["HumanOmniConfig", "HumanOmniProcessor", "HumanOmniQwen2ForCausalLM"]
