"""Explanations for a cold start on corpora that have none: made by rule, or given by the user.

The rule says who is seen and what is said, as far as the corpus tells, and what a face and a voice typically show for
the labelled emotion. *Nobody looked at the clip*: such explanations teach the format and the words, not to observe;
that is left to GRPO.
"""

import json
from dataclasses import replace
from pathlib import Path

from verl_omni.corpora.listing import Clip, CorpusError
from verl_omni.data.files import read_rows

RULES = "rules"
# Emotion -> what a face shows, and how a voice is.
SIGNS: dict[str, list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
RULE = "In the video, the face shows {}. In the audio, the voice is {}. The emotion is {}."


def explain(clips: list[Clip], source: str) -> list[Clip]:
    """Give the training clips explanations, by ``rules`` or a CSV or JSONL file with columns ``id`` and ``text``.

    ``CorpusError`` if the file lacks a training clip, or there is no rule for a label.
    """
    if source != RULES:
        texts = {str(row.get("id")): str(row.get("text") or "") for row in read_rows(source)}
        if missing := [clip.id for clip in clips if clip.split == "train" and not texts.get(clip.id)]:
            raise CorpusError(f"{source}: no `text` for {len(missing)} training clips, e.g. `id` {missing[0]}")
    elif unknown := {clip.label for clip in clips} - SIGNS.keys():
        raise CorpusError(f"--explanations {RULES}: no rule for {', '.join(sorted(unknown))}; give a file of texts")
    else:
        texts = {clip.id: f"{clip.about} {RULE.format(*SIGNS[clip.label], clip.label)}".lstrip() for clip in clips}
    return [replace(clip, reasoning=texts[clip.id]) if clip.split == "train" else clip for clip in clips]
