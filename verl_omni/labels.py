"""The emotion labels of each corpus, and the one spelling that rewards and metrics compare.

Rewards compare strings exactly, so rows must hold these spellings; ``normalize`` maps a corpus' own ones to them.
A model's answer is never normalized: "happiness" for "happy" is a miss, in training as in the published figures.
"""

LABELS: dict[str, tuple[str, ...]] = {
    "dfew": ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear"),
    "mafw": (
        *("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear"),
        *("contempt", "anxiety", "helplessness", "disappointment"),
    ),
    "ravdess": ("neutral", "calm", "happy", "sad", "angry", "fear", "disgust", "surprise"),
    "demo": ("happy", "neutral", "angry", "sad"),
}

# Spelling found in annotations -> the spelling of LABELS.
ALIASES: dict[str, str] = {
    "anger": "angry",
    "happiness": "happy",
    "joy": "happy",
    "sadness": "sad",
    "surprised": "surprise",
    "disgusted": "disgust",
    "fearful": "fear",
    "afraid": "fear",
    "neutrality": "neutral",
    "contemptuous": "contempt",
    "anxious": "anxiety",
    "helpless": "helplessness",
    "disappointed": "disappointment",
}


def normalize(label: str, corpus: str) -> str:
    """Return ``label`` in the spelling of ``LABELS[corpus]``; case and surrounding space don't matter.

    Raises:
        ValueError: the corpus is unknown, or has no such label.

    >>> normalize("Anger", "dfew")
    'angry'
    """
    if corpus not in LABELS:
        raise ValueError(f"unknown corpus {corpus!r}; known: {', '.join(LABELS)}")
    spelling = label.strip().lower()
    spelling = ALIASES.get(spelling, spelling)
    if spelling not in LABELS[corpus]:
        raise ValueError(
            f"label {label!r} is not one of {corpus}'s ({', '.join(LABELS[corpus])}); "
            "correct the annotation or add the spelling to verl_omni.labels.ALIASES"
        )
    return spelling
