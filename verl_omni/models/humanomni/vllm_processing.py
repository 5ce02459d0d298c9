"""HumanOmni's multimodal processor for vLLM 0.24 to 0.32: what happens to a prompt and its media before the model.

A video item is ``(frames, {"instruction": question})``: the gate weighs the video branches by the question, so the same
clip with another question has other features. The metadata is part of the item's hash, by which vLLM caches processed
items and encoder outputs; a question that travelled any other way would get the features of the first one asked.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from transformers import BatchFeature
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)

from .processing import AUDIO_TOKEN, VIDEO_TOKEN, HumanOmniProcessor, question_of


class HumanOmniDataParser(MultiModalDataParser):
    """Brings every accepted form of a video to one: ``(uint8 [T, H, W, 3], {"instruction": str} or {})``.

    Equal clips then have equal hashes, as arrays, ``[T, 3, H, W]`` tensors, PIL images, files, or with more metadata.
    """

    def _get_video_with_metadata(self, video: Any) -> tuple[np.ndarray, dict[str, str]]:
        if isinstance(video, MediaWithBytes):
            video = video.media  # the decoded frames say more than the file's bytes: how many, and which
        frames, metadata = video if isinstance(video, tuple) else (video, None)
        frames = np.asarray(frames)
        if frames.ndim == 4 and frames.shape[1] == 3 and frames.shape[-1] != 3:
            frames = frames.transpose(0, 2, 3, 1)
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(
                f"A video must be uint8 RGB frames of shape [T, H, W, 3] or [T, 3, H, W], or PIL images of one size; "
                f"found {frames.dtype} {list(frames.shape)}."
            )
        known = {key: value for key, value in (metadata or {}).items() if key == "instruction"}
        return np.ascontiguousarray(frames), known


class HumanOmniProcessingInfo(BaseProcessingInfo):
    def get_hf_processor(self, **kwargs: object) -> HumanOmniProcessor:
        # A request's arguments go to the processor's call, never to its constructor: one processor serves all requests.
        return self.ctx.get_hf_processor(HumanOmniProcessor)

    def get_data_parser(self) -> MultiModalDataParser:
        return HumanOmniDataParser(
            target_sr=self.get_hf_processor().feature_extractor.sampling_rate,
            target_channels=1,
            audio_resample_method="scipy",
            video_needs_metadata=True,  # without it vLLM drops the metadata from the hash and from the item
        )

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"video": None, "audio": None}

    def placeholders(self) -> list[tuple[str, int, int]]:
        """Each modality, its placeholder's id, and how many of them an item becomes."""
        config = self.get_hf_config()
        return [
            ("video", config.video_token_id, config.num_video_tokens),
            ("audio", config.audio_token_id, config.num_audio_tokens),
        ]

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {modality: length for modality, _, length in self.placeholders()}


class HumanOmniDummyInputsBuilder(BaseDummyInputsBuilder[HumanOmniProcessingInfo]):
    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        tokens = {"video": VIDEO_TOKEN, "audio": AUDIO_TOKEN}
        return "\n".join(tokens[modality] for modality in tokens for _ in range(mm_counts.get(modality, 0)))

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]
    ) -> MultiModalDataDict:
        config, extract = self.info.get_hf_config(), self.info.get_hf_processor().feature_extractor
        size = config.vision_config.image_size
        video = np.zeros((config.num_frames, size, size, 3), dtype=np.uint8)
        items = {"video": video, "audio": np.zeros(extract.n_samples, dtype=np.float32)}
        return {modality: [items[modality]] * count for modality, count in mm_counts.items() if count}


class HumanOmniMultiModalProcessor(BaseMultiModalProcessor[HumanOmniProcessingInfo]):
    """Calls the HF processor on the media, and expands one placeholder per item in the prompt's ids.

    Prompts may come as text, as ids with one placeholder per item, or as ids in which the placeholders are expanded
    already, which is what verl sends.
    """

    def apply(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Process a prompt and its media (vLLM's ``ProcessorInputs``).

        Raises:
            ValueError: the prompt's placeholders and the media do not match; a video with another number of frames
                than the model takes.
        """
        inputs.prompt = self._collapse(self._style(inputs.prompt, inputs.hf_processor_mm_kwargs), inputs.mm_data_items)
        if "video" in inputs.mm_data_items:
            self._add_instructions(inputs)  # before vLLM hashes the items
        return super().apply(inputs, *args, **kwargs)

    def _style(self, prompt: str | list[int], mm_kwargs: Mapping[str, Any]) -> list[int]:
        """Ids of the prompt in the wanted style; ids that are expanded came from the HF processor and have theirs."""
        tokenizer, video = self.info.get_tokenizer(), self.info.get_hf_config().video_token_id
        if not isinstance(prompt, str) and (video, video) in pairwise(prompt):
            return prompt
        plain = prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special_tokens=False)
        style = self.info.ctx.get_merged_mm_kwargs(mm_kwargs).get("prompt_style")
        text = self.info.get_hf_processor().style_prompt(plain, style)
        if text == plain and not isinstance(prompt, str):
            return prompt
        return tokenizer.encode(text, add_special_tokens=False)

    def _collapse(self, prompt: list[int], mm_items: MultiModalDataItems) -> list[int]:
        """Leave one placeholder of each expanded run, and check that there is one for each item."""
        lengths = {token: (modality, length) for modality, token, length in self.info.placeholders()}
        runs = [(token, len(list(group))) for token, group in groupby(prompt)]
        for token, run in runs:
            modality, expanded = lengths.get(token, ("", run))
            if run not in (1, expanded):
                raise ValueError(
                    f"The prompt has {run} {modality} placeholders (id {token}) in a row; "
                    f"expected 1, or {expanded} if the ids are expanded already."
                )
        collapsed = [token for token, run in runs for _ in range(1 if token in lengths else run)]
        for token, (modality, _) in lengths.items():
            count, items = collapsed.count(token), mm_items.get_count(modality, strict=False)
            if count != items:
                raise ValueError(
                    f"The prompt has placeholders for {count} {modality} items, but {items} were passed. "
                    f"Put one placeholder into the prompt for each {modality}."
                )
        return collapsed

    def _add_instructions(self, inputs: Any) -> None:
        """Give each video without an instruction the prompt's own; append it to a clip's name, if it has one."""
        videos, frames_wanted = inputs.mm_data_items["video"], self.info.get_hf_config().num_frames
        question = question_of(self.info.get_tokenizer().decode(inputs.prompt, skip_special_tokens=False))
        names = list((inputs.mm_uuid_items or {}).get("video", []))
        for index, (frames, metadata) in enumerate(videos.data):
            if len(frames) != frames_wanted:
                raise ValueError(
                    f"Video {index} has {len(frames)} frames; this model takes {frames_wanted}. Of files "
                    "that a request names, `python -m verl_omni serve` takes as many, and those of training."
                )
            metadata = metadata or {"instruction": question}
            videos.data[index] = (frames, metadata)
            if names and names[index] is not None:
                names[index] = f"{names[index]}:{metadata['instruction']}"
        if names:
            inputs.mm_uuid_items["video"] = names

    def _hf_data(self, mm_items: MultiModalDataItems) -> dict[str, Any]:
        """The HF processor's arguments for these items: none if every item's processed form is cached."""
        data: dict[str, Any] = {}
        if videos := mm_items["video"].get_all() if "video" in mm_items else []:
            data["videos"] = [frames for frames, _ in videos]
            data["video_metadata"] = [metadata for _, metadata in videos]
        if waves := mm_items["audio"].get_all() if "audio" in mm_items else []:
            data["audio"] = waves
        return data

    def _apply_hf_processor_mm_only(
        self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Mapping[str, object], *args: Any, **kwargs: Any
    ) -> BatchFeature:
        """Called by vLLM 0.24 and 0.28."""
        processor, data = self.info.get_hf_processor(), self._hf_data(mm_items)
        return self.info.ctx.call_hf_processor(processor, data, hf_processor_mm_kwargs)

    def _get_hf_mm_inputs(
        self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]
    ) -> tuple[dict[str, Any], Mapping[str, object], dict[str, object]]:
        """Called by vLLM 0.32, which then calls the HF processor itself."""
        return self._hf_data(mm_items), hf_kwargs, {}

    def _get_mm_fields_config(self, *args: object, **kwargs: object) -> Mapping[str, MultiModalFieldConfig]:
        of_videos = ("pixel_values", "bert_input_ids", "bert_attention_mask")
        kinds = dict.fromkeys(of_videos, "video") | {"input_features": "audio"}
        return {name: MultiModalFieldConfig.batched(kind) for name, kind in kinds.items()}

    def _get_prompt_updates(self, *args: object, **kwargs: object) -> Sequence[PromptUpdate]:
        return [
            PromptReplacement(modality=modality, target=[token], replacement=[token] * length)
            for modality, token, length in self.info.placeholders()
        ]
