"""Words for emotions and for the senses, and which of them a sentence asserts. English; pure Python; the words are data
(``lexicon.json``).

A word counts unless its clause denies it ("not happy", "no sign of fear or anger"), and what only *seems* so gives way
to what the sentence says instead ("seems happy, but her voice is sad"; "although he looks calm, he is furious").
"""

import json
import re
from pathlib import Path

_TABLES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
# The words an emotion goes by in an explanation. A label of any corpus, in any spelling, is a word of its emotion.
EMOTIONS: dict[str, str] = _TABLES["emotions"]
EMOTION_OF, SENSE_OF = (  # the latter of what only the eye, or only the ear, tells of a person
    {word: concept for concept, words in _TABLES[table].items() for word in [concept, *words.split()]}
    for table in ("emotions", "senses")
)
READ = 20_000  # characters of a text that are looked at: many times the longest completion, a millisecond's work
TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|[,.;:!?]")
# Turns of phrase whose single words would mislead: those that deny, and those that deny nothing.
DENIALS = re.compile(r"\b(?:rather than|instead of|free of|free from|devoid of|far from|lack of|absence of)\b")
NO_DENIALS = re.compile(
    r"\b(?:not (?:only|just|merely)|(?:no|without) (?:an? |any )?doubt|"
    r"(?:can ?not|can't|could not|couldn't|unable to|fails? to|failed to) "
    r"(?:help|hide|conceal|contain|suppress|mask))\b"
)
NEGATIONS, CLAUSE_ENDS, CONTRASTS, CONCESSIONS, SEEMING = (
    frozenset(_TABLES["turns"][name].split())
    for name in ("negations", "clause_ends", "contrasts", "concessions", "seeming")
)
REACH, REACH_ON = 5, 2  # words after a negation, and after a word it has denied, that it still denies


def asserted(sentence: str, vocabulary: dict[str, str]) -> tuple[list[str], list[str]]:
    """Return the concepts that a sentence asserts, and those that seemed so before it says otherwise.

    Args:
        vocabulary: concept of each word, lower case.
    """
    text = sentence[:READ].lower().replace("\u2019", "'")
    text = NO_DENIALS.sub(" ", DENIALS.sub("without", text))
    firm: list[str] = []
    seeming: list[str] = []
    overruled: list[str] = []
    reach, seems, conceded, after_comma = 0, False, False, False
    for token in TOKEN.findall(text):
        goes_on = token in vocabulary or token in ("or", "nor")
        if after_comma and not goes_on:
            reach = 0  # not a list that goes on ("no joy, fear or anger")
        after_comma = token == ","
        conceded = (conceded and not after_comma) or token in CONCESSIONS
        seems = (seems and token not in ".;:!?") or token in SEEMING
        if token in CONTRASTS:
            overruled, seeming, seems = overruled + seeming, [], False
        if token in NEGATIONS or token.endswith("n't"):
            reach = REACH
        elif token in CLAUSE_ENDS:
            reach = 0
        elif token not in vocabulary:
            reach -= not (after_comma or goes_on)
        elif reach > 0:
            reach = REACH_ON
        else:
            (firm if not seems else overruled if conceded else seeming).append(vocabulary[token])
    return firm + seeming, overruled


def emotions_in(sentence: str) -> list[str]:
    """Return the emotions that a sentence asserts, in order, each once.

    >>> emotions_in("He seems happy, but his voice is not calm: he is furious.")
    ['angry']
    """
    certain, overruled = asserted(sentence, EMOTION_OF)
    return list(dict.fromkeys(certain or overruled))


def senses_in(text: str) -> set[str]:
    """Return which of ``sight`` and ``sound`` a text claims to have used.

    >>> senses_in("Her face is pale; no voice is heard.")
    {'sight'}
    """
    certain, overruled = asserted(text, SENSE_OF)
    return {*certain, *overruled}


def emotion_of(label: str) -> str:
    """Return the emotion that a label or answer names, else the label itself in lower case.

    >>> emotion_of("Anxious"), emotion_of("bored")
    ('anxious', 'bored')
    """
    word = label.strip().lower()
    return EMOTION_OF.get(word, word)
