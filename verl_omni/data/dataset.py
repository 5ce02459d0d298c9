"""verl's datasets for rows with video and sound: ``data.custom_cls.path=pkg://verl_omni.data.dataset``.

Both check rows and media when they are built, which is before verl starts its workers, by ``data.media_check``,
``modalities`` and ``no_audio`` (docs/your-data.md). A file that fails later, in the middle of training, raises
``MediaError`` with its name: verl logs it and the step goes on with its other prompts
(``trainer.v1.sampler.sync_refill_failed_groups=True`` draws new ones).
"""

from dataclasses import asdict
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
from omegaconf import DictConfig, open_dict
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.tokenizer.chat_template import extract_system_prompt_and_generation

from verl_omni.data.check import MODALITIES, RowsError, check_media, keep_modalities, load_rows
from verl_omni.data.row import ConversationRow, PromptRow, RowSchema, content_items, conversation
from verl_omni.media.cache import read_audio_once, read_video_once
from verl_omni.media.resize import FrameFormat
from verl_omni.media.store import read_frames, read_sound
from verl_omni.models.humanomni.processing import question_of


def checked_rows(
    files: list[str], schema: type[RowSchema], key: str, config: DictConfig, max_samples: int
) -> list[dict]:
    """Load and check rows as ``config`` (verl's ``data`` section) says."""
    rows = load_rows(files, schema, key, max_samples, config.get("shuffle", False), config.get("seed"))
    keep_modalities(rows, config.get("modalities", MODALITIES))
    options = config.get("media_check", "full"), config.get("no_audio", "error")
    check_media(rows, config.num_frames, *options, frame_format_of(config))
    if in_one_stream(config):
        for row in rows:
            if len(row.data.get("videos") or []) != len(row.data.get("audios") or []):
                raise RowsError(f"{row}: use_audio_in_video needs a sound for each video and a video for each sound")
    return [row.data for row in rows]


def in_one_stream(config: DictConfig) -> bool:
    """Whether each video and its sound go to the model as one stream."""
    return bool((config.get("mm_processor_kwargs") or {}).get("use_audio_in_video"))


def columns_of(rows: list[dict]) -> dict[str, list]:
    """Rows -> columns, with None where a row lacks one; ``RowsError`` if its values differ in kind from row to row."""
    columns = {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
    for key, values in columns.items():
        try:
            pa.array(values)
        except (pa.ArrowException, UnicodeError) as error:
            raise RowsError(f"column {key!r}: values of different kinds ({error}); make them alike") from error
    return columns


def frame_format_of(config: DictConfig) -> FrameFormat:
    """What ``fill_in_frames`` has set."""
    frames = config.frame_format
    return FrameFormat(tuple(frames.size), frames.resample, frames.colour and tuple(frames.colour), frames.multiple)


def fill_in_frames(config: DictConfig, processor: ProcessorMixin) -> None:
    """Set frames to the model's: verl hands this very config on to the agent loop, which has no processor.

    Raises:
        ValueError: another number of frames, which vLLM would refuse in every rollout and the export would not have; no
            processor, without which verl goes on if it could not load it; ``use_audio_in_video`` of a family without.
    """
    if processor is None:
        remedy = "convert the checkpoint (python -m verl_omni convert); verl's 'Failed to create processor' says why"
        raise ValueError(f"verl found no processor in the model's directory: {remedy}")
    if config.get("num_frames") not in (None, processor.num_frames):
        raise ValueError(
            f"data.num_frames={config.num_frames}, and the model has {processor.num_frames}: leave the option out, or "
            "change num_frames in the model's config.json and processor_config.json, where evaluation reads it too"
        )
    if in_one_stream(config) and not hasattr(processor, "one_stream"):
        raise ValueError("data.mm_processor_kwargs.use_audio_in_video: this model knows no such streams; leave it out")
    with open_dict(config):
        config.num_frames = processor.num_frames
        styles = [config.get(key) or {} for key in ("apply_chat_template_kwargs", "mm_processor_kwargs")]
        aspect_ratio = next((style["aspect_ratio"] for style in styles if "aspect_ratio" in style), None)
        config.frame_format = asdict(processor.frame_format(aspect_ratio))


class OmniRLHFDataset(RLHFDataset):
    """Prompts with video and sound for GRPO; ``RowsError`` if rows or media cannot be trained on."""

    def _read_files_and_tokenize(self) -> None:
        fill_in_frames(self.config, self.processor)
        rows = checked_rows(self.data_files, PromptRow, self.prompt_key, self.config, self.max_samples)
        self.dataframe = self.maybe_filter_out_long_prompts(datasets.Dataset.from_dict(columns_of(rows)))

    def _build_messages(self, example: dict, key: str) -> list[dict]:
        return conversation(example[key], example.get("videos"), example.get("audios"))

    @classmethod
    def _process_multi_modal_info(
        cls, messages: list[dict], image_patch_size: int, config: DictConfig
    ) -> tuple[None, list[tuple] | None, list | None]:
        """Read the media of a conversation; the rollouts of a prompt, all in one process, get the same arrays.

        Returns:
            No images; videos, each ``(uint8 [T, H, W, 3], {"instruction": question})``; audios, each float32
            ``[samples]`` at 16 kHz. None where there are none.
        """
        items = content_items(messages)
        metadata = {"instruction": question_of(messages)}
        wanted = config.num_frames, frame_format_of(config)
        videos = [(read_video_once(item["video"], *wanted), metadata) for item in items if item["type"] == "video"]
        audios = [read_audio_once(item["audio"]) for item in items if item["type"] == "audio"]
        return None, videos or None, audios or None


class OmniSFTDataset(MultiTurnSFTDataset):
    """Conversations with video and sound for supervised fine-tuning; the loss is on the assistant's turns alone.

    Rows are as for ``OmniRLHFDataset``, with ``messages`` that end in an answer in place of ``prompt`` and label.
    """

    template_checked = False
    apply_chat_template_kwargs: dict[str, Any]  # verl's, whose type mypy cannot tell

    def __init__(
        self,
        parquet_files: str | list[str],
        tokenizer: PreTrainedTokenizerBase,
        config: DictConfig,
        processor: ProcessorMixin,
        max_samples: int = -1,
    ):
        fill_in_frames(config, processor)
        self.config = config
        processor.image_processor.patch_size = processor.patch_size  # where verl looks for it
        super().__init__(parquet_files, tokenizer, config, processor, max_samples)
        if media := config.get("mm_processor_kwargs"):  # verl hands them on in rollouts alone
            self.apply_chat_template_kwargs = {**self.apply_chat_template_kwargs, "processor_kwargs": {**media}}

    def _read_files_and_process(self) -> None:
        rows = checked_rows(self.parquet_files, ConversationRow, self.messages_key, self.config, self.max_samples)
        self.dataframe = pd.DataFrame(columns_of(rows))
        self.messages = self.dataframe[self.messages_key].tolist()
        # HumanOmni's template has neither; verl's default for the last, the string "none", would arrive as True.
        self.tools = self.enable_thinking = self.enable_thinking_default = None
        self.system_prompt, self.generation_prompt = extract_system_prompt_and_generation(
            self.tokenizer, **self.apply_chat_template_kwargs
        )

    def _build_messages(self, example: dict[str, Any]) -> list[dict]:
        """Return the messages with frames and waves in place of ``<video>`` and ``<audio>``."""
        wanted = self.config.num_frames, frame_format_of(self.config)
        frames = [read_frames(video, *wanted) for video in example.get("videos") or []]
        waves = [read_sound(audio) for audio in example.get("audios") or []]
        return conversation(example[self.messages_key], frames, waves)

    def __getitem__(self, item: int) -> dict[str, Any]:
        # Rows without media have the key as well: verl's collator looks for the first row's keys in all.
        return {"multi_modal_inputs": {}} | super().__getitem__(item)

    def sanity_check(self, *args: Any) -> None:
        """Compare turn by turn with the whole conversation once: the template is the same for all rows.

        verl does it for every row, and processes all media a second time for it.
        """
        if not self.template_checked:
            super().sanity_check(*args)
            self.template_checked = True
