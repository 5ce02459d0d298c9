"""Chats with media for processors of all families."""

from itertools import chain
from os import PathLike
from typing import Any

from verl_omni.media import read_audio, read_video


class ChatMedia:
    """Renders a chat and processes its media, read by :mod:``verl_omni.media``; for a ``ProcessorMixin``."""

    # Keywords of ``apply_chat_template`` that go to ``__call__``.
    call_options: tuple[str, ...] = ("return_tensors", "padding", "padding_side", "video_metadata")

    def apply_chat_template(self, conversation, tokenize: bool = False, return_dict: bool = False, **kwargs):
        """Render, and with ``tokenize`` process, a conversation (or a list of them).

        Media items are ``{"type": "video" | "audio", "path" | "video" | "audio": file, folder, frames or wave}``.
        ``**kwargs`` go to the template, and to ``__call__`` if they are its own or in ``processor_kwargs``.
        """
        options = {**(kwargs.pop("processor_kwargs", None) or {})}
        options |= {name: kwargs.pop(name) for name in self.call_options if name in kwargs}
        text = super().apply_chat_template(conversation, tokenize=False, **kwargs)
        if not tokenize:
            return text
        messages = chain.from_iterable(conversation) if isinstance(text, list) else conversation
        items = [item for turn in messages if not isinstance(turn["content"], str) for item in turn["content"]]
        media = {kind: [self.load(item, kind) for item in items if item["type"] == kind] for kind in ("video", "audio")}
        inputs = self(text=text, videos=media["video"] or None, audio=media["audio"] or None, **options)
        return inputs if return_dict else inputs["input_ids"]

    def load(self, item: dict, kind: str) -> Any:
        """Frames or wave of a chat's media item; arrays and PIL images pass as they are."""
        source = item["path"] if "path" in item else item[kind]
        if not isinstance(source[0] if isinstance(source, list) else source, str | PathLike):
            return source
        if kind == "video":
            return read_video(source, self.num_frames)
        return read_audio(source, self.feature_extractor.sampling_rate)
