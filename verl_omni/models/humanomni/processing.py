"""Processor of HumanOmni: chat, frames and sound -> the model's inputs."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from verl_omni.media.cache import processed_once
from verl_omni.media.resize import FrameFormat
from verl_omni.models.chat import ChatMedia

from .configuration import video_tokens

VIDEO_TOKEN, AUDIO_TOKEN = "<|humanomni_video|>", "<|humanomni_audio|>"
# What the original's GRPO puts before a video: the Qwen2-VL template's own tags, in addition to HumanOmni's.
GRPO_PREFIX = "<|vision_start|><|video_pad|><|vision_end|>"
PROMPT_STYLES, ASPECT_RATIOS = ("infer", "grpo"), ("pad", "squash")

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
MEDIA_TAGS = re.compile(
    rf"(?:{re.escape(GRPO_PREFIX)})?<vi_start>(?:{re.escape(VIDEO_TOKEN)})*<vi_end>\n"
    rf"|<au_start>(?:{re.escape(AUDIO_TOKEN)})*<au_end>\n"
)


class HumanOmniProcessor(ChatMedia, ProcessorMixin):
    """SigLIP's image processor, Whisper's feature extractor, Qwen2's tokenizer and that of the gate's BERT in one.

    Args:
        tokenizer: with the placeholders ``<|humanomni_video|>`` and ``<|humanomni_audio|>``.
        patch_size: pixels a side of a SigLIP patch.
        num_frames: frames sampled from a video file.
        prompt_style: ``infer`` (as the original's inference) or ``grpo`` (as its GRPO, with Qwen2-VL's video tags).
        aspect_ratio: ``pad`` frames to squares with the mean colour, or ``squash`` them.
        chat_template: Jinja; the default renders R1-Omni's prompt.
    """

    video_token, audio_token = VIDEO_TOKEN, AUDIO_TOKEN
    call_options = (*ChatMedia.call_options, "prompt_style", "aspect_ratio")

    def __init__(
        self,
        image_processor=None,
        feature_extractor=None,
        tokenizer=None,
        bert_tokenizer=None,
        patch_size: int = 16,
        num_frames: int = 8,
        prompt_style: str = "infer",
        aspect_ratio: str = "pad",
        chat_template: str | None = None,
    ):
        if not isinstance(image_processor, SiglipImageProcessorPil):
            # Where torchvision is installed, Auto picks a processor that resizes differently from the original's.
            image_processor = SiglipImageProcessorPil(**image_processor.to_dict())
        parts = (image_processor, feature_extractor, tokenizer, bert_tokenizer)
        super().__init__(*parts, chat_template=chat_template or CHAT_TEMPLATE)
        self.patch_size, self.num_frames = patch_size, num_frames
        self.prompt_style = check_option("prompt_style", prompt_style, PROMPT_STYLES)
        self.aspect_ratio = check_option("aspect_ratio", aspect_ratio, ASPECT_RATIOS)
        self.video_token_id = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
        self.audio_token_id = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)

    def video_tokens(self, num_frames: int) -> int:
        """Placeholders of a video of ``num_frames``."""
        return video_tokens(num_frames, self.image_processor.size["height"], self.patch_size)

    @property
    def audio_tokens(self) -> int:
        """Placeholders of a sound: Whisper halves the mel frames, and three positions become one."""
        return self.feature_extractor.nb_max_frames // 2 // 3

    def __call__(
        self,
        text: str | list[str] | None = None,
        images=None,
        videos: Sequence | None = None,
        audio: Sequence | None = None,
        video_metadata: Sequence[dict | None] | None = None,
        sampling_rate: int = 16000,
        prompt_style: str | None = None,
        aspect_ratio: str | None = None,
        return_tensors: str | None = None,
        do_sample_frames: bool = False,
        **kwargs,
    ) -> BatchFeature:
        """Process a batch of prompts with their media, in the order of the placeholders.

        Args:
            text: prompts with one placeholder per video and sound, or none at all: then the ids are left alone.
            videos: each uint8 ``[T, H, W, 3]`` or a list of T PIL images, already sampled.
            audio: mono float waves ``[samples]`` at ``sampling_rate``.
            video_metadata: per video ``{"instruction": question}`` for BERT; default: the prompt's last user turn.
            prompt_style, aspect_ratio: override the processor's own.
            **kwargs: for the tokenizer (``padding``, ``padding_side``, ``truncation``, ...).

        Returns:
            ``input_ids, attention_mask [B, L]``, ``pixel_values [V, T, 3, S, S]`` (float32), ``bert_input_ids,
            bert_attention_mask [V, BERT's maximum length]``, ``input_features [A, bins, frames]`` (float32).

        Raises:
            ValueError: images, frames still to be sampled, or placeholders and media that do not match.
        """
        if images is not None:
            raise ValueError("HumanOmni sees videos, not images: pass a list of frames as a video")
        if do_sample_frames:
            raise ValueError("pass sampled frames (verl_omni.media.read_video) with do_sample_frames=False")
        texts = [text] if isinstance(text, str) else list(text or [])
        texts = [self.style_prompt(prompt, prompt_style) for prompt in texts]
        waves = [] if audio is None else [np.asarray(wave, dtype=np.float32) for wave in audio]
        pixels = [self.process_frames(video, aspect_ratio) for video in (videos if videos is not None else [])]

        data = {}
        if texts:
            expanded = self.expand_placeholders(texts, [self.video_tokens(len(p)) for p in pixels], len(waves))
            kwargs.setdefault("padding", len(texts) > 1 and return_tensors is not None)
            data.update(self.tokenizer(expanded, return_tensors=return_tensors, **kwargs))
        if pixels:
            data["pixel_values"] = torch.stack(pixels)
            data.update(self.process_questions(self.questions(texts, len(pixels), video_metadata)))
        if waves:
            data["input_features"] = torch.cat([self.process_wave(wave, sampling_rate) for wave in waves])
        return BatchFeature(data, tensor_type=return_tensors)

    def style_prompt(self, prompt: str, prompt_style: str | None = None) -> str:
        """``prompt`` in the wanted style, whichever style it is in."""
        style = check_option("prompt_style", prompt_style or self.prompt_style, PROMPT_STYLES)
        tag = f"<vi_start>{VIDEO_TOKEN}"
        prompt = prompt.replace(GRPO_PREFIX + tag, tag)
        return prompt.replace(tag, GRPO_PREFIX + tag) if style == "grpo" else prompt

    def frame_format(self, aspect_ratio: str | None = None) -> FrameFormat:
        """What becomes of frames before they are normalised."""
        aspect_ratio = check_option("aspect_ratio", aspect_ratio or self.aspect_ratio, ASPECT_RATIOS)
        config = self.image_processor
        colour = tuple(int(mean * 255) for mean in config.image_mean) if aspect_ratio == "pad" else None
        return FrameFormat((config.size["height"], config.size["width"]), int(config.resample), colour)

    def process_frames(
        self, frames: np.ndarray | Sequence[Image.Image], aspect_ratio: str | None = None
    ) -> torch.Tensor:
        """Frames uint8 ``[T, H, W, 3]`` or T PIL images -> ``[T, 3, S, S]`` float32, bit-equal to the original's."""
        wanted = self.frame_format(aspect_ratio)
        settings = (wanted, self.image_processor.to_json_string())
        return processed_once(frames, settings, lambda: self._process_frames(frames, wanted))

    def _process_frames(self, frames: np.ndarray | Sequence[Image.Image], wanted: FrameFormat) -> torch.Tensor:
        images = [np.asarray(frame.convert("RGB") if isinstance(frame, Image.Image) else frame) for frame in frames]
        resized = wanted.apply(images)  # [T, S, S, 3]
        # A pixel has 256 values: what the image processor makes of them is looked up, bit-equal and 5 times as fast.
        ramp = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
        processed = self.image_processor([ramp], do_resize=False, input_data_format="channels_last")
        table = processed["pixel_values"][0][..., 0]  # [3, 256]
        return torch.from_numpy(np.stack([table[c][resized[..., c]] for c in range(3)], axis=1))

    def process_wave(self, wave: np.ndarray, sampling_rate: int) -> torch.Tensor:
        """Mono float32 ``[samples]`` -> log-mel ``[1, bins, frames]``, Whisper's."""
        settings = (sampling_rate, self.feature_extractor.to_json_string())
        return processed_once(wave, settings, lambda: self._process_wave(wave, sampling_rate))

    def _process_wave(self, wave: np.ndarray, sampling_rate: int) -> torch.Tensor:
        # Whisper pads with silence to 30 s. All silent frames are equal: transform one beyond the sound, and repeat it.
        extract = self.feature_extractor
        heard = min(len(wave) + 2 * extract.n_fft, extract.n_samples)
        samples = -(-heard // extract.hop_length) * extract.hop_length
        mel = extract(wave, sampling_rate=sampling_rate, max_length=samples, return_tensors="pt")["input_features"]
        silence = mel[..., -1:].expand(-1, -1, extract.nb_max_frames - mel.shape[-1])
        return torch.cat([mel, silence], dim=-1)

    def expand_placeholders(self, texts: list[str], video_tokens: list[int], num_audio: int) -> list[str]:
        """One placeholder per feature vector. ``video_tokens``: that number for each video."""
        lengths = {VIDEO_TOKEN: video_tokens, AUDIO_TOKEN: [self.audio_tokens] * num_audio}
        for token, name in ((VIDEO_TOKEN, "videos"), (AUDIO_TOKEN, "audio")):
            found = sum(text.count(token) for text in texts)
            # No placeholder at all is verl's second call, on decoded text: it wants the media's features only.
            if found and found != len(lengths[token]):
                raise ValueError(f"{found} placeholders {token} in the text, {len(lengths[token])} {name} given")
        queues = {token: iter(counts) for token, counts in lengths.items()}
        pattern = re.compile("|".join(map(re.escape, lengths)))
        return [pattern.sub(lambda match: match[0] * next(queues[match[0]]), text) for text in texts]

    def questions(
        self, texts: list[str], num_videos: int, video_metadata: Sequence[dict | None] | None = None
    ) -> list[str]:
        """The question about each video: its metadata's ``instruction``, else its prompt's."""
        given = [(item or {}).get("instruction") for item in video_metadata or [None] * num_videos]
        # Videos belong to the prompts that hold their placeholders; without any, to the prompts one by one.
        owners = [text for text in texts for _ in range(text.count(VIDEO_TOKEN))]
        owners = owners or (texts if len(texts) == num_videos else texts[:1] * num_videos)
        if len(given) == num_videos and None not in given:
            return given
        if not len(given) == len(owners) == num_videos:
            raise ValueError(
                f"{num_videos} videos, {len(given)} metadata, {len(texts)} prompts: which question is whose? Give "
                'each video its video_metadata {"instruction": ...}'
            )
        return [question_of(owner) if own is None else own for own, owner in zip(given, owners, strict=True)]

    def process_questions(self, questions: list[str]) -> dict[str, torch.Tensor]:
        """BERT's ids, all padded to its maximum length: verl concatenates the samples' tensors."""
        longest = self.bert_tokenizer.model_max_length
        batch = self.bert_tokenizer(
            questions, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        )
        return {"bert_input_ids": batch["input_ids"], "bert_attention_mask": batch["attention_mask"]}


def check_option(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    return value


def question_of(conversation: str | list[dict]) -> str:
    """The text of the last user turn without its media, which BERT reads; of a rendered prompt, or of messages."""
    if isinstance(conversation, str):
        turn = conversation.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
        return MEDIA_TAGS.sub("", turn)
    content = [message["content"] for message in conversation if message["role"] == "user"][-1]
    return "".join(item["text"] for item in content if item["type"] == "text")
