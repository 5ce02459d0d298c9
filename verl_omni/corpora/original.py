"""The original R1-Omni's JSON: a list of ``{"video": PATH, "conversations": [{"from": "human"|"gpt", "value": …}]}``.

The two examples in the original's README show the two kinds: a label alone as the answer (GRPO), or
``<think>…</think>`` and ``<answer>…</answer>`` on the next line (cold start). Paths are relative to a media folder.
"""

import json
import re
from pathlib import Path

from verl_omni.corpora.listing import Clip, CorpusError, Listing
from verl_omni.data.files import read_rows
from verl_omni.prompts import QUESTION, answer_text, instruction
from verl_omni.rewards import extract_answer, extract_explanation

TAG = re.compile(r"<(?:video|audio)>\n?")
CORPUS_IN_PATH = {"dfew": "dfew", "mafw": "mafw", "ravdess": "rave?dess", "emer": r"mer20\d\d|mer2\d|emer"}


def read(annotations: Path, root: Path) -> Listing:
    """List an annotation file of the original, with its questions; corpus and split are read off each clip's path.

    Paths start from ``root``. Absolute ones of another machine find their clips by the longest end that is there.
    """
    clips = []
    for index, entry in enumerate(read_rows(annotations)):
        try:
            turns = [(turn["from"], turn["value"]) for turn in entry["conversations"]]
            video = entry["video"]
        except (KeyError, TypeError) as error:
            expected = "`video` and `conversations` of turns with `from` and `value`"
            raise CorpusError(f"{annotations}, entry {index}: {expected} expected, {entry} found") from error
        answers = [value for speaker, value in turns if speaker == "gpt"]
        if len(answers) != 1:
            raise CorpusError(f"{annotations}, entry {index} ({video}): {len(answers)} answers from `gpt`, not one")
        label, reasoning = extract_answer(answers[0]), extract_explanation(answers[0])
        question = "".join(TAG.sub("", value) for speaker, value in turns if speaker == "human").strip()
        corpus = next((name for name, found in CORPUS_IN_PATH.items() if re.search(found, video, re.IGNORECASE)), "")
        split = "test" if re.search(r"(?<![a-z])test(?![a-z])", video, re.IGNORECASE) else "train"
        clips.append(Clip(video, _find(root, video), label, split, reasoning, question=question, corpus=corpus))
    return Listing("original", clips)


def _find(root: Path, video: str) -> Path:
    parts = Path(video).parts
    ends = (root.joinpath(*parts[start:]) for start in range(len(parts)) if parts[start] != "/")
    return next((path for path in ends if path.is_file()), root / video.lstrip("/"))


def write(clips: list[Clip], path: Path, media_root: Path) -> None:
    """Write clips as the original reads them: with an explanation for its cold start, without one for its GRPO.

    Paths are written relative to ``media_root``, below which all clips lie.
    """
    entries = []
    for clip in clips:
        # The original's GRPO adds the instruction itself, its cold start reads it from the file.
        question = clip.question or (instruction() if clip.reasoning else QUESTION)
        turns = [("human", f"<video>\n<audio>\n{question}"), ("gpt", answer_text(clip.label, clip.reasoning))]
        conversation = [{"from": speaker, "value": value} for speaker, value in turns]
        entries.append({"video": clip.media.relative_to(media_root).as_posix(), "conversations": conversation})
    path.write_text(json.dumps(entries, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
