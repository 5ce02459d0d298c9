"""HumanOmni as a vLLM model: the towers and projectors of the HF model around vLLM's own Qwen2."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors

from .towers import HumanOmniTowers
from .vllm_processing import HumanOmniDummyInputsBuilder, HumanOmniMultiModalProcessor, HumanOmniProcessingInfo

PARTS = ("vision_tower", "audio_tower", "mm_projector", "audio_projector", "bert_model", "bert_gate")


@MULTIMODAL_REGISTRY.register_processor(
    HumanOmniMultiModalProcessor, info=HumanOmniProcessingInfo, dummy_inputs=HumanOmniDummyInputsBuilder
)
class HumanOmniQwen2ForCausalLM(HumanOmniTowers, nn.Module, SupportsMultiModal):
    """Loads the HF model's state dict, as it lies on disk and as verl sends it, whole or in buckets."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "lm_head.": "language_model.lm_head.",
            **{f"model.{part}.": f"{part}." for part in PARTS},
            "model.": "language_model.model.",
        }
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.init_towers(config)
        self.language_model = init_vllm_registered_model(
            vllm_config,
            prefix=maybe_prefix(prefix, "language_model"),
            hf_config=config,
            architectures=["Qwen2ForCausalLM"],
        )

    def get_language_model(self) -> nn.Module:
        return self.language_model

    def embed_multimodal(
        self,
        pixel_values: Sequence[torch.Tensor] = (),
        bert_input_ids: Sequence[torch.Tensor] = (),
        bert_attention_mask: Sequence[torch.Tensor] = (),
        input_features: Sequence[torch.Tensor] = (),
    ) -> list[torch.Tensor]:
        """Features of a batch's items, which are all videos or all sounds: ``[tokens, hidden]`` for each.

        They are encoded one by one: the same numbers in every batch, and memory for one.
        """
        videos = zip(pixel_values, bert_input_ids, bert_attention_mask, strict=True)
        return [
            *(self.get_video_features(pixels[None], ids[None], mask[None])[0] for pixels, ids, mask in videos),
            *(self.get_audio_features(mel[None])[0] for mel in input_features),
        ]

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor | IntermediateTensors:
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        if self.language_model.config.tie_word_embeddings:
            # It may come in another bucket than the embeddings, which vLLM 0.32 refuses; these are the ones to load.
            weights = ((name, tensor) for name, tensor in weights if name != "lm_head.weight")
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
