"""Model families. Importing this package registers them with transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

from .humanomni.configuration import HumanOmniConfig
from .humanomni.modeling import HumanOmniQwen2ForCausalLM
from .humanomni.processing import HumanOmniProcessor

# exist_ok: verl imports its plug-ins in every process, some of them more than once.
AutoConfig.register(HumanOmniConfig.model_type, HumanOmniConfig, exist_ok=True)
AutoModelForCausalLM.register(HumanOmniConfig, HumanOmniQwen2ForCausalLM, exist_ok=True)
AutoProcessor.register(HumanOmniConfig, HumanOmniProcessor, exist_ok=True)

__all__ = ["HumanOmniConfig", "HumanOmniProcessor", "HumanOmniQwen2ForCausalLM"]
