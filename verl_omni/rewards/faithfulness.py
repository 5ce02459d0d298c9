"""Does the explanation use the senses that the clip has, and only these?"""

from collections.abc import Collection

from verl_omni.rewards.answer import extract_explanation
from verl_omni.rewards.lexicon import senses_in

SENSES = ("sight", "sound")


def faithfulness_reward(completion: str, label: str = "", senses: Collection[str] = SENSES) -> float:
    """Return the share of the clip's senses that the explanation mentions; 0.0 if it claims one that is not there.

    Args:
        senses: ``sight`` and ``sound``, as far as the model was given them.

    >>> faithfulness_reward("<think>His face is pale.</think><answer>fear</answer>")
    0.5
    """
    mentioned = senses_in(extract_explanation(completion))
    given = set(senses)
    return 0.0 if mentioned - given or not given else len(mentioned) / len(given)
