"""Does an explanation name the emotion that the answer gives?

An explanation *names* an emotion if one of its words (below) stands in it. It is

- `consistent` if it names the answered emotion (it may name others too: explanations weigh several),
- `contradicting` if it names emotions, but not the answered one,
- `silent` if it names none, or there is no explanation or no answer within the vocabulary.

Words are matched whole and without regard to case. Negation is not understood: "not happy" names happy.
"""

# The words an emotion goes by in an explanation; keys are the labels of all corpora.
WORDS = {
    "happy": "happy happily happier happiness joy joyful joyfully joyous cheerful cheerfully cheer delight delighted"
    " pleased pleasure pleasant glad elated laugh laughs laughing laughter",
    "sad": "sad sadly sadder sadness sorrow sorrowful grief grieving unhappy depressed dejected mournful melancholy"
    " crying cry cries weeping tearful tears",
    "neutral": "neutral neutrality unemotional expressionless impassive",
    "angry": "angry angrily angrier anger rage enraged furious fury irritated irritation annoyed annoyance"
    " outraged mad",
    "surprise": "surprise surprised surprising surprisingly astonished astonishment amazed amazement"
    " shock shocked startled",
    "disgust": "disgust disgusted disgusting disgustedly revulsion revolted repulsed aversion loathing",
    "fear": "fear fearful fearfully fears afraid scared frightened terrified terror horror panic",
    "contemptuous": "contempt contemptuous contemptuously disdain disdainful scorn scornful sneer sneering",
    "anxious": "anxiety anxious anxiously worried worry worries nervous nervousness nervously uneasy unease",
    "helpless": "helpless helplessly helplessness powerless powerlessness",
    "disappointed": "disappointment disappointed disappointing disappointedly letdown",
    "calm": "calm calmly calmness composed peaceful relaxed serene tranquil",
}
# Answers of an open vocabulary (EMER) that mean one of the labels above.
LABEL_OF_WORD = {word: label for label, words in WORDS.items() for word in [label, *words.split()]}
# Anything but a letter separates words. Bytes: a megabyte is translated and split in milliseconds.
LETTERS_ONLY = bytes(code if chr(code).isalpha() and code < 128 else ord(" ") for code in range(256))


def explanation(completion: str) -> str:
    """The text within the first `<think>…</think>`, stripped; empty if there is none."""
    text, closed, _ = completion.partition("<think>")[2].partition("</think>")
    return text.strip() if closed else ""


def emotions_named(text: str) -> set[str]:
    """Labels that a text names.

    >>> sorted(emotions_named("He looks worried, then smiles with joy."))
    ['anxious', 'happy']
    """
    words = set(text.lower().encode("ascii", "replace").translate(LETTERS_ONLY).decode().split())
    return {LABEL_OF_WORD[word] for word in words & LABEL_OF_WORD.keys()}


def consistency(think: str, answer: str) -> str:
    """`consistent`, `contradicting` or `silent`.

    >>> consistency("Her raised eyebrows show surprise.", "surprise")
    'consistent'
    >>> consistency("Her raised eyebrows show surprise.", "happy")
    'contradicting'
    """
    named = emotions_named(think)
    answered = LABEL_OF_WORD.get(answer.strip().lower())
    if not named or answered is None:
        return "silent"
    return "consistent" if answered in named else "contradicting"
