"""What R1-Omni asks, how it makes the model think first, and how its answers are written (arXiv 2503.05379)."""

import re

QUESTION = (
    "As an emotional recognition expert; throughout the video, which emotion conveyed by the characters is the most "
    "obvious to you?"
)

INSTRUCTION = (
    "{question}\nOutput the thinking process in <think> </think> and final emotion in <answer> </answer> tags."
)


def instruction(question: str = QUESTION) -> str:
    """Return the text of the user turn, which is also what the BERT gate reads.

    >>> instruction("Who is angry?").splitlines()[0]
    'Who is angry?'
    """
    return INSTRUCTION.format(question=question)


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


ANSWER = re.compile(r"<think>(?P<reasoning>.*?)</think>\s*<answer>(?P<label>.*?)</answer>", re.DOTALL)


def answer_text(label: str, reasoning: str = "") -> str:
    """Return the assistant's turn in the form that the format reward asks for; without reasoning, the bare label.

    >>> answer_text("happy", "He smiles.")
    '<think>He smiles.</think>\\n<answer>happy</answer>'
    """
    return f"<think>{reasoning}</think>\n<answer>{label}</answer>" if reasoning else label


def read_answer(text: str) -> tuple[str, str]:
    """Return ``(label, reasoning)`` of an annotated answer, the inverse of ``answer_text``.

    >>> read_answer("<think> He smiles. </think> <answer> happy </answer>")
    ('happy', 'He smiles.')
    """
    match = ANSWER.fullmatch(text.strip())
    return (match["label"].strip(), match["reasoning"].strip()) if match else (text.strip(), "")
