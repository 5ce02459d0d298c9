"""What R1-Omni asks, how it makes the model think first, and how its answers are written (arXiv 2503.05379)."""

QUESTION = (
    "As an emotional recognition expert; throughout the video, which emotion conveyed by the characters is the most "
    "obvious to you?"
)


def instruction(question: str = QUESTION) -> str:
    """Return the text of the user turn, which is also what the BERT gate reads.

    >>> instruction("Who is angry?").splitlines()[0]
    'Who is angry?'
    """
    return f"{question}\nOutput the thinking process in <think> </think> and final emotion in <answer> </answer> tags."


# What the authors' released evaluation scripts ask (humanomni/eval/eval_mafw_dfew.py and eval_ravedess.py).
RELEASE_QUESTION = (
    "As an emotional recognition expert, in the video, when the characters display their emotions, which predominant "
    "feeling is most clearly expressed?"
)
QUESTIONS = {"think": instruction(), "bare": QUESTION, "release": f"{RELEASE_QUESTION}\n"}


def asked(question: str, options: str = "") -> str:
    """Return the text of the user turn for a question of ``QUESTIONS``, or any other text, with labels to choose from.

    >>> asked("Who is angry?", "Ann ,Bob")
    'Who is angry?\\nAnn ,Bob'
    """
    if not options:
        return QUESTIONS.get(question, question)
    if question == "think":  # the labels belong to the question, as in the authors' training data
        return instruction(f"{QUESTION}\n{options}")
    return f"{QUESTIONS.get(question, question).rstrip()}\n{options}"


def answer_text(label: str, reasoning: str = "") -> str:
    """Return the assistant's turn in the form that the format reward asks for; without reasoning, the bare label.

    >>> answer_text("happy", "He smiles.")
    '<think>He smiles.</think>\\n<answer>happy</answer>'
    """
    return f"<think>{reasoning}</think>\n<answer>{label}</answer>" if reasoning else label
