"""A row: what verl reads of a clip. Its schema, its makers, and the conversation that the model sees.

A row has verl's keys: ``prompt`` (or ``messages``) with one ``<video>`` / ``<audio>`` per path in ``videos`` /
``audios``; a modality that a row doesn't have is left out. The schemas only look: rows stay dicts, with all columns.
"""

import re
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from verl_omni.corpora.listing import Clip
from verl_omni.prompts import QUESTION, answer_text, instruction
from verl_omni.rewards import extract_answer

MEDIA_KEYS = {"videos": "<video>", "audios": "<audio>"}
TAGS = re.compile("(<video>|<audio>)")
SPECIAL_TOKEN = re.compile(r"<\|\w+\|>")


def _plain(text: str) -> str:
    if found := SPECIAL_TOKEN.search(text):
        raise ValueError(f"the special token {found[0]} in it would be no text, but a turn or medium of its own")
    return text


def _answered(label: str) -> str:
    if not extract_answer(label):
        raise ValueError(f"the label {label!r} is empty, as an empty answer would be: both would be right")
    return label


Word = Annotated[str, Field(min_length=1)]
# With a constraint, even one that all texts meet, pydantic refuses half a surrogate pair, which is no text in UTF-8.
Text = Annotated[str, Field(min_length=0), AfterValidator(_plain)]
# A video's path, or those of its images.
Paths = Annotated[
    list[Word], Field(min_length=1), BeforeValidator(lambda source: source if isinstance(source, list) else [source])
]


class Message(BaseModel, strict=True):
    """One turn; media stand in a user's as ``<video>`` and ``<audio>``."""

    role: Literal["system", "user", "assistant"]
    content: Text

    @model_validator(mode="after")
    def _says_something(self) -> "Message":
        if self.role != "system" and not self.content.strip():
            raise ValueError(f"the {self.role} says nothing")
        if self.role != "user" and TAGS.search(self.content):
            raise ValueError(f"a placeholder for media in a turn of the {self.role}: media belong to the user's")
        return self


class RowSchema(BaseModel, strict=True):
    """What rows of both kinds have; ``turns`` stands for the column of the conversation."""

    key: ClassVar[str]  # verl's default for that column
    ends_with: ClassVar[str]

    turns: list[Message]
    videos: list[Paths] | None = None
    audios: list[Word] | None = None
    images: list | None = None
    extra_info: dict | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> "RowSchema":
        roles, said = [message.role for message in self.turns], "".join(message.content for message in self.turns)
        if "user" not in roles or roles[-1] != self.ends_with or "system" in roles[1:]:
            raise ValueError(
                f"turns of {roles}; needed: one of the user, the last of the {self.ends_with}, a system's first"
            )
        if "<image>" in said or self.images:
            raise ValueError("images; HumanOmni sees videos, a still image is a video given as a list of one file")
        for key, tag in MEDIA_KEYS.items():
            if said.count(tag) != len(getattr(self, key) or []):
                raise ValueError(f"{said.count(tag)} {tag} in the text and {len(getattr(self, key) or [])} {key}")
        return self


class RewardModel(BaseModel, strict=True):
    ground_truth: Annotated[Text, AfterValidator(_answered)]


class PromptRow(RowSchema):
    """A question and its label: for GRPO, validation and evaluation."""

    key, ends_with = "prompt", "user"

    data_source: Word
    reward_model: RewardModel


class ConversationRow(RowSchema):
    """Questions and answers: for supervised fine-tuning."""

    key, ends_with = "messages", "assistant"


def problems_of(data: object, schema: type[RowSchema], key: str) -> list[str]:
    """What is wrong with a row whose conversation stands in column ``key``, media files apart; empty if nothing."""
    if not isinstance(data, dict):
        return [f"a row of columns and values expected, {data!r:.80} found"]
    if data.get(key) is None:
        return [f"no {key!r}; its columns are {', '.join(data)}"]
    try:
        schema.model_validate(data | {"turns": data[key]})
    except ValidationError as error:
        return [_sentence(problem, key) for problem in error.errors()]
    return []


def _sentence(problem: ErrorDetails, key: str) -> str:
    place = ".".join(map(str, problem["loc"])).replace("turns", key, 1)
    if problem["type"] == "missing":
        return f"no {place}"
    if problem["type"] == "value_error":
        return f"{place}: {problem['ctx']['error']}" if place else str(problem["ctx"]["error"])
    return f"{place}: {problem['msg'].lower()}, {problem['input']!r:.80} found"


def conversation(turns: list[dict], videos: Sequence | None, audios: Sequence | None) -> list[dict]:
    """Turns with their media in place of ``<video>`` and ``<audio>``, as chat templates take them."""
    media = {"<video>": ("video", iter(videos or [])), "<audio>": ("audio", iter(audios or []))}

    def item(part: str) -> dict:
        kind, queue = media.get(part, ("text", iter([part])))
        return {"type": kind, kind: next(queue)}

    return [turn | {"content": [item(part) for part in TAGS.split(turn["content"]) if part]} for turn in turns]


def content_items(messages: list[dict]) -> list[dict]:
    """Return the items of all messages."""
    return [item for message in messages for item in message["content"]]


def rl_row(clip: Clip, data_source: str, index: int, **about: object) -> dict:
    """A row for GRPO and evaluation (verl's ``RLHFDataset``); ``about``: what else its ``extra_info`` says."""
    asked = clip.question or QUESTION
    asked = asked if "<think>" in asked else instruction(asked)
    source = clip.corpus or data_source
    about |= {"index": index, "split": clip.split, "id": f"{source}/{clip.id}"}
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": f"<video><audio>{asked}"}],
        "videos": [str(clip.media.resolve())],
        "audios": [str(clip.media.resolve())],
        "ability": "emotion",
        "reward_model": {"style": "rule", "ground_truth": clip.label},
        "extra_info": about | ({"actor": clip.actor} if clip.actor else {}),
    }


def sft_row(clip: Clip, data_source: str, index: int, **about: object) -> dict:
    """A row for supervised fine-tuning (verl's ``MultiTurnSFTDataset``).

    The answer is ``<think>…</think>`` and ``<answer>…</answer>`` where the clip has an explanation, else the bare label
    (the MAFW-DFEW-SFT baseline); the question asks for the former only where the answer has it.
    """
    asked = clip.question or (instruction() if clip.reasoning else QUESTION)
    row = rl_row(clip, data_source, index, **about)
    kept = {key: row[key] for key in ("data_source", "videos", "audios", "extra_info")}
    turns = (("user", f"<video><audio>{asked}"), ("assistant", answer_text(clip.label, clip.reasoning)))
    return {"messages": [{"role": role, "content": content} for role, content in turns], **kept}
