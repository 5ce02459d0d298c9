"""The original R1-Omni's JSON: a list of `{"video": PATH, "conversations": [{"from": "human"|"gpt", "value": …}]}`.

The two examples in the original's README show the two kinds: a label alone as the answer (GRPO), or
`<think>…</think>` and `<answer>…</answer>` on the next line (cold start). Paths are relative to a media folder.
"""

import json
from pathlib import Path

from verl_omni.corpora.listing import Clip, CorpusError, Listing
from verl_omni.prompts import QUESTION, answer_text, instruction, read_answer


def read(annotations: Path, media_root: Path) -> Listing:
    """List an annotation file of the original; everything in it is training data.

    Questions are not taken over: every row of this package asks `verl_omni.prompts.instruction()`.

    Raises:
        CorpusError: The file is not of this format; the message names the entry.
    """
    entries = json.loads(annotations.read_text(encoding="utf-8"))
    if not isinstance(entries, list):
        raise CorpusError(f"{annotations}: a {type(entries).__name__} found, a list of clips expected")
    return Listing("original", [_clip(entry, index, annotations, media_root) for index, entry in enumerate(entries)])


def _clip(entry: dict, index: int, annotations: Path, media_root: Path) -> Clip:
    try:
        answers = [turn["value"] for turn in entry["conversations"] if turn["from"] == "gpt"]
        video = entry["video"]
    except (KeyError, TypeError) as error:
        expected = "`video` and `conversations` of turns with `from` and `value`"
        raise CorpusError(f"{annotations}, entry {index}: {expected} expected, {entry} found") from error
    if len(answers) != 1:
        raise CorpusError(f"{annotations}, entry {index} ({video}): {len(answers)} answers from `gpt`, one expected")
    label, reasoning = read_answer(answers[0])
    return Clip(video, media_root / video, label, "train", reasoning)


def write(clips: list[Clip], path: Path, media_root: Path) -> None:
    """Write clips as the original reads them: with an explanation for its cold start, without one for its GRPO.

    Args:
        clips: Clips of one split.
        path: JSON file to write.
        media_root: Folder that the written paths are relative to; every clip lies below it.
    """
    entries = []
    for clip in clips:
        # The original's GRPO adds the instruction itself, its cold start reads it from the file.
        question = instruction() if clip.reasoning else QUESTION
        entries.append(
            {
                "video": clip.media.relative_to(media_root).as_posix(),
                "conversations": [
                    {"from": "human", "value": f"<video>\n<audio>\n{question}"},
                    {"from": "gpt", "value": answer_text(clip.label, clip.reasoning)},
                ],
            }
        )
    path.write_text(json.dumps(entries, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
