"""The emotion words of each corpus: two named vocabularies, and the map between them.

Rewards compare strings exactly, so rows must hold the words that a model is to answer with. ``authors`` are the words
of R1-Omni's scripts (``humanomni/eval/eval_mafw_dfew.py`` and ``eval_ravedess.py``, the README's example ``anxious``),
which its released checkpoints answer with; ``corpus`` those of the corpora's own annotation files. An answer is never
normalized in training, and at evaluation only if that is asked for. The words are data (``labels.json``).
"""

import json
from pathlib import Path

from verl_omni.errors import InputError

_TABLES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
LABELS: dict[str, tuple[str, ...]] = {corpus: tuple(words) for corpus, words in _TABLES["authors"].items()}
VOCABULARIES: dict[str, dict[str, tuple[str, ...]]] = {
    "authors": LABELS,
    "corpus": LABELS | {corpus: tuple(words) for corpus, words in _TABLES["corpus"].items()},  # where they differ
}
# Labels to choose from, letter by letter as the authors' evaluation scripts have them (there in a comment).
OPTIONS: dict[str, str] = _TABLES["options"]
# Another word for a class -> the authors' word.
ALIASES: dict[str, str] = _TABLES["aliases"]


def canonical(word: str) -> str:
    """Return the authors' word for the class that ``word`` names; a word that names none comes back in lower case.

    >>> canonical(" Anxiety"), canonical("bored")
    ('anxious', 'bored')
    """
    word = word.strip().lower()
    return ALIASES.get(word, word)


def normalize(label: str, corpus: str, vocabulary: str = "authors") -> str:
    """Return ``label`` in any spelling as ``VOCABULARIES[vocabulary][corpus]`` words it; ``InputError`` if it has none.

    >>> normalize("contempt", "mafw"), normalize("contempt", "mafw", "corpus")
    ('contemptuous', 'contempt')
    """
    known = VOCABULARIES[vocabulary]
    if corpus not in known:
        raise InputError(f"unknown corpus {corpus!r}; known: {', '.join(known)}")
    for word in known[corpus]:
        if canonical(word) == canonical(label):
            return word
    raise InputError(
        f"label {label!r} is not one of {corpus}'s ({', '.join(known[corpus])}); "
        "correct the annotation or add the spelling to the aliases in verl_omni/labels.json"
    )


def label_set(corpus: str, found: set[str]) -> tuple[str, ...]:
    """Return the corpus's words in the vocabulary that the labels ``found`` in rows are of; none if it has none."""
    sets = [words[corpus] for words in VOCABULARIES.values() if corpus in words]
    return max(sets, key=lambda words: len(found & set(words)), default=())


def options(corpus: str, found: set[str]) -> str:
    """Return the labels to choose from in a question about rows with the labels ``found``."""
    words = label_set(corpus, found)
    if corpus in OPTIONS and words == LABELS[corpus]:
        return OPTIONS[corpus]
    return " ,".join(words or sorted(found))
