"""A repetition penalty on new tokens alone, as R1-Omni's inference has it.

vLLM's own penalty counts the prompt's tokens as well; the original generates from embeddings, so its penalty never saw
a prompt. The penalty itself is transformers'.
"""

from collections.abc import Callable

import torch
from transformers import RepetitionPenaltyLogitsProcessor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

ARGUMENT = "new_tokens_repetition_penalty"  # in SamplingParams.extra_args


class NewTokensRepetitionPenalty(AdapterLogitsProcessor):
    """vLLM logits processor; a request asks for it by ``extra_args={ARGUMENT: 1.1}``."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Callable | None:
        penalty = (params.extra_args or {}).get(ARGUMENT)
        if penalty is None:
            return None
        processor = RepetitionPenaltyLogitsProcessor(penalty)

        def penalize(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:  # logits [vocabulary]
            seen = torch.tensor([output_ids], dtype=torch.long, device=logits.device)
            return processor(seen, logits[None])[0]

        return penalize
