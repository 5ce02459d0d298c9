"""Does an explanation name the emotion that the answer gives?

An explanation *names* an emotion if one of its sentences asserts it (``verl_omni.rewards.lexicon``: "not happy" does
not name happy). It is

- ``consistent`` if it names the answered emotion (it may name others too: explanations weigh several),
- ``contradicting`` if it names emotions, but not the answered one,
- ``silent`` if it names none, or there is no explanation or no answer within the vocabulary.
"""

from verl_omni.rewards.explanation import sentences
from verl_omni.rewards.lexicon import EMOTIONS, emotion_of, emotions_in


def emotions_named(text: str) -> set[str]:
    """Emotions that a text names.

    >>> sorted(emotions_named("He looks worried, then smiles with joy."))
    ['anxious', 'happy']
    """
    return {emotion for sentence in sentences(text) for emotion in emotions_in(sentence)}


def consistency(think: str, answer: str) -> str:
    """``consistent``, ``contradicting`` or ``silent``.

    >>> consistency("Her raised eyebrows show surprise.", "surprise")
    'consistent'
    >>> consistency("Her raised eyebrows show surprise.", "happy")
    'contradicting'
    """
    named = emotions_named(think)
    answered = emotion_of(answer)
    if not named or answered not in EMOTIONS:
        return "silent"
    return "consistent" if answered in named else "contradicting"
