"""The question that R1-Omni asks, and the instruction that makes the model think first (arXiv 2503.05379)."""

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
