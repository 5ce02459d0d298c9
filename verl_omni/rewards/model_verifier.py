"""The explanation's verifier as a model: any sequence classifier of transformers, here or served by verl.

    +reward.reward_kwargs.explanation.verifier=DIR                      in the reward worker, on its CPU
    and what docs/rewards.md adds to it                                 as verl's reward model, on GPUs of its own

The classifier's labels (``id2label``) are emotion words; ERV's is a RoBERTa on the 28 of GoEmotions.
"""

import json
from functools import cached_property, lru_cache
from typing import Any
from urllib.request import Request, urlopen

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from verl_omni.rewards.lexicon import emotion_of

# ERV's: every emotion above the threshold, at most the two likeliest, and the likeliest where none is.
THRESHOLD, AT_MOST = 0.1, 2


class ModelVerifier:
    """A directory's classifier as a ``Verifier``, run in this process on the CPU."""

    def __init__(self, path: str):
        config = AutoConfig.from_pretrained(path)
        self.emotions = [emotion_of(config.id2label[index]) for index in range(config.num_labels)]
        self.multi_label = config.problem_type == "multi_label_classification"
        self.path = path

    @cached_property
    def classifier(self) -> tuple[Any, Any]:
        """Tokenizer and model."""
        return AutoTokenizer.from_pretrained(self.path), AutoModelForSequenceClassification.from_pretrained(self.path)

    def probabilities(self, texts: list[str]) -> list[list[float]]:
        """Return ``[texts][labels]``."""
        tokenizer, model = self.classifier
        longest = min(tokenizer.model_max_length, model.config.max_position_embeddings)  # not each tokenizer knows
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**tokens).logits.float()
        return (logits.sigmoid() if self.multi_label else logits.softmax(-1)).tolist()

    def __call__(self, texts: list[str]) -> list[list[str]]:
        return [self._choose(row) for row in self.probabilities(texts)] if texts else []

    def _choose(self, probabilities: list[float]) -> list[str]:
        ranked = sorted(zip(probabilities, self.emotions, strict=True), reverse=True)
        likely = [emotion for probability, emotion in ranked if probability > THRESHOLD]
        return list(dict.fromkeys(likely[:AT_MOST] or [ranked[0][1]]))


class ServedVerifier(ModelVerifier):
    """The same classifier behind verl's reward-model router at ``host:port`` (vLLM's ``/classify``)."""

    def __init__(self, path: str, address: str):
        super().__init__(path)
        self.url = f"http://{address}/classify"

    def probabilities(self, texts: list[str]) -> list[list[float]]:
        # Logits (`use_activation: false`) vLLM gives without the tanh inside a BERT's head, too.
        asked = {"model": self.path, "input": texts, "use_activation": True, "truncate_prompt_tokens": -1}
        body = json.dumps(asked).encode()
        with urlopen(Request(self.url, body, {"Content-Type": "application/json"}), timeout=600) as response:
            answers = json.load(response)["data"]
        return [answer["probs"] for answer in sorted(answers, key=lambda answer: answer["index"])]


load, served = lru_cache(ModelVerifier), lru_cache(ServedVerifier)  # read once per process
