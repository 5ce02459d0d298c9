"""The explanation's rewards and metrics: what a text asserts, ERV's formulas, the senses, a classifier as verifier."""

import sys

import numpy as np
import pytest
import torch
from originals import started

from verl_omni.metrics import eea, epc, fcr
from verl_omni.models.humanomni.tiny import train_bert_tokenizer
from verl_omni.rewards import compute_score, explanation_reward, faithfulness_reward, length_reward
from verl_omni.rewards.explanation import by_rules, coherence, explained_emotion, sentences
from verl_omni.rewards.lexicon import EMOTIONS, emotions_in, senses_in


def completion(explanation: str, answer: str = "happy") -> str:
    return f"<think>{explanation}</think>\n<answer>{answer}</answer>"


# --- what a sentence asserts


@pytest.mark.parametrize(
    ("text", "emotions"),
    [
        ("He is furious.", ["angry"]),
        ("He is not happy.", []),
        ("He isn\u2019t happy or surprised.", []),
        ("There are no obvious signs of fear or anger.", []),
        ("No joy, fear or anger.", []),
        ("Neither happy nor sad.", []),
        ("She is far from happy; her voice shows a lack of joy.", []),
        ("NOT HAPPY", []),
        ("He is not sad but angry.", ["angry"]),
        ("He is not happy, he is sad.", ["sad"]),
        ("Not only sad but also angry.", ["sad", "angry"]),
        ("She cannot hide her joy.", ["happy"]),
        ("Without a doubt he is angry.", ["angry"]),
        ("No smile and an angry voice.", ["angry"]),
        ("Sadness rather than anger.", ["sad"]),
        ("Rather than anger she feels sadness.", ["sad"]),
        ("It is not that he is angry, he is afraid.", ["fear"]),
        ("She seems happy.", ["happy"]),
        ("She seems happy, but her voice is sad.", ["sad"]),
        ("She seems happy at first. However, her voice is angry.", ["angry"]),
        ("He looks sad, but not angry.", ["sad"]),
        ("He looks sad but says nothing.", ["sad"]),
        ("Although he looks calm, he is furious.", ["angry"]),
        ("He is furious, although he looks calm.", ["angry"]),
        ("He is happy but nervous.", ["happy", "anxious"]),
        ("Unhappy, madly running.", ["sad"]),
        ("", []),
    ],
)
def test_a_sentence_asserts_what_it_does_not_deny_or_overrule(text, emotions):
    assert emotions_in(text) == emotions


@pytest.mark.parametrize(
    ("text", "senses"),
    [
        ("Her face is pale and her voice trembles.", {"sight", "sound"}),
        ("She frowns.", {"sight"}),
        ("No voice is heard.", set()),
        ("Her voice seems low, but her eyes are bright.", {"sight", "sound"}),
        ("A man in a jacket.", set()),
    ],
)
def test_senses_that_a_text_claims_to_have_used(text, senses):
    assert senses_in(text) == senses


# --- ERV's reward: matching sentences over those with an emotion (over all, for a neutral label)


@pytest.mark.parametrize(
    ("explanation", "label", "reward"),
    [
        ("He shouts. His face is red. He is furious.", "angry", 1.0),
        ("His brows show anger. He is furious. She seems sad. She laughs.", "angry", 0.5),
        ("He is happy.", "angry", 0.0),
        ("A man walks.", "angry", 0.0),
        ("A man walks. He is angry.", "neutral", 0.5),
        ("A man walks. He stays expressionless.", "neutral", 1.0),
        ("", "neutral", 0.0),
        ("He is scornful.", "contemptuous", 1.0),
        ("He is scornful.", "<answer> Contempt </answer>", 1.0),
        ("He is not angry.", "angry", 0.0),
    ],
)
def test_explanation_reward_is_the_share_of_sentences_that_support_the_label(explanation, label, reward):
    assert explanation_reward(completion(explanation), label) == reward


def test_an_answer_without_explanation_is_not_rewarded_for_one():
    assert explanation_reward("<answer>angry</answer>", "angry") == 0.0
    assert explanation_reward("<think>He is angry.", "angry") == 0.0


def test_the_verifier_is_asked_sentence_by_sentence():
    asked = []

    def verifier(texts):
        asked.extend(texts)
        return [["angry"], ["sad", "angry"], ["sad"]]

    text = "One. Two! But three? Four."
    assert explanation_reward(completion(text), "angry", verifier) == pytest.approx(2 / 3)
    assert asked == ["One.", "Two! But three?", "Four."] == sentences(text)


@pytest.mark.parametrize(
    ("explanation", "emotion"),
    [
        ("He is angry. He is sad. He is angry again.", "angry"),
        ("He is angry. He is sad.", "sad"),
        ("He frowns. A man walks. He is sad.", "sad"),
        ("A man walks.", "neutral"),
        ("", ""),
    ],
)
def test_the_emotion_of_an_explanation_is_that_of_most_sentences_and_else_the_last(explanation, emotion):
    assert explained_emotion(completion(explanation)) == emotion


# --- EEA, EPC, FCR


def test_eea_epc_and_fcr_by_hand():
    labels = ["happy", "sad", "angry", "fear", "contemptuous"]
    answers = ["happy", "angry", "angry", "fear", "contempt"]
    explained = ["happy", "angry", "sad", "", "contemptuous"]
    assert eea(labels, explained) == 40.0  # rows 1 and 5
    assert epc(answers, explained) == 60.0  # rows 1, 2 and 5
    assert epc(["", "happy"], ["", "happy"]) == 50.0  # no explanation agrees with no answer
    assert coherence("<answer></answer>", "happy")["epc"] == 0.0
    assert fcr(labels, answers, explained) == 40.0


def test_a_completions_figures_average_to_the_metrics():
    rows = [("He is happy.", "happy", "happy"), ("He is sad.", "sad", "happy"), ("He is happy.", "sad", "happy")]
    parts = [coherence(completion(text, answer), label) for text, answer, label in rows]
    assert parts == [
        {"eea": 1.0, "epc": 1.0, "fcr": 1.0},
        {"eea": 0.0, "epc": 1.0, "fcr": 0.0},
        {"eea": 1.0, "epc": 0.0, "fcr": 0.0},
    ]
    explained = [explained_emotion(completion(text)) for text, _, _ in rows]
    labels, answers = [label for *_, label in rows], [answer for _, answer, _ in rows]
    means = {name: 100 * sum(part[name] for part in parts) / 3 for name in ("eea", "epc", "fcr")}
    figures = {
        "eea": eea(labels, explained), "epc": epc(answers, explained), "fcr": fcr(labels, answers, explained)
    }  # fmt: skip
    assert figures == pytest.approx(means)


# --- faithfulness, length


@pytest.mark.parametrize(
    ("explanation", "senses", "reward"),
    [
        ("His face is dark and his voice low.", ("sight", "sound"), 1.0),
        ("His face is dark.", ("sight", "sound"), 0.5),
        ("A man.", ("sight", "sound"), 0.0),
        ("His face is dark.", ("sight",), 1.0),
        ("His face is dark and his voice low.", ("sight",), 0.0),
        ("His face is dark; no voice is heard.", ("sight",), 1.0),
    ],
)
def test_faithfulness_is_the_share_of_senses_used_and_none_for_a_hallucinated_one(explanation, senses, reward):
    assert faithfulness_reward(completion(explanation), senses=senses) == reward


def test_the_rows_senses_decide_what_is_hallucinated():
    text = completion("His face is dark and his voice low.")
    assert compute_score("demo", text, "happy", {"senses": ["sight"]}, faithfulness=1)["faithfulness"] == 0.0
    assert compute_score("demo", text, "happy", {"senses": ["sight", "sound"]}, faithfulness=1)["faithfulness"] == 1.0


def test_length_is_punished_along_a_line_before_the_limit():
    words = {192: 0.0, 208: -0.25, 256: -1.0, 400: -1.0}
    assert {count: length_reward("word " * count) for count in words} == words
    assert length_reward("word " * 9, limit=10, buffer=2) == -0.5


# --- a classifier as verifier


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A tiny BERT that has learnt one word of each of three emotions, and neutral."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    names = ["anger", "joy", "sadness", "neutral"]
    words = {"anger": "furious shouting", "joy": "smiling glad", "sadness": "crying tears", "neutral": "walks chair"}
    texts = [
        f"{start} {word} {end}"
        for word in " ".join(words.values()).split()
        for start in ("he", "she is", "a man")
        for end in ("now.", "there, in the room.")
    ]
    tokenizer = train_bert_tokenizer(texts)
    config = BertConfig(
        **{"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1},
        **{"intermediate_size": 64, "max_position_embeddings": 64, "problem_type": "multi_label_classification"},
        **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 4},
        **{"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}},
    )
    model = BertForSequenceClassification(config)
    targets = torch.tensor([[any(word in text for word in words[name].split()) for name in names] for text in texts])
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(**batch).logits, targets.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


TEXT = "She is furious there, in the room. A man walks now. She is crying now."


@pytest.mark.slow
def test_a_trained_classifier_verifies_an_explanation(classifier):
    assert explanation_reward(completion(TEXT), "angry", verifier=classifier) == 0.5
    assert explanation_reward(completion(TEXT), "sad", verifier=classifier) == 0.5
    assert explanation_reward(completion(TEXT), "happy", verifier=classifier) == 0.0
    assert explanation_reward(completion(""), "happy", verifier=classifier) == 0.0


@pytest.mark.slow
def test_the_rules_do_not_know_what_the_classifier_has_learnt(classifier):
    text = completion("She is smiling now.")
    assert explanation_reward(text, "happy", verifier=by_rules) == 0.0
    assert explanation_reward(text, "happy", verifier=classifier) == 1.0


@pytest.mark.slow
def test_a_term_takes_its_verifier_from_the_configuration(classifier):
    score = compute_score("demo", completion(TEXT), "angry", explanation={"weight": 2.0, "verifier": classifier})
    assert score["explanation"] == 0.5 and score["score"] == 2.0 * 0.5 + 1.0  # and the format's


@pytest.mark.slow
def test_at_most_two_emotions_a_sentence_and_the_likeliest_if_none_is_likely(classifier):
    from verl_omni.rewards.model_verifier import ModelVerifier

    class Fixed(ModelVerifier):
        def probabilities(self, texts):
            return [[0.95, 0.88, 0.73, 0.5], [0.001, 0.002, 0.003, 0.004]]

    assert Fixed(classifier)(["a", "b"]) == [["angry", "happy"], ["neutral"]]


@pytest.mark.slow
def test_a_classifier_that_vllm_serves_says_what_it_says_here(classifier, tmp_path):
    pytest.importorskip("vllm")
    from test_vllm import ONE_PROCESS

    from verl_omni.rewards.model_verifier import load, served

    sentences_of_all = [
        "She is furious now.",
        "A man smiling there, in the room.",
        "He walks now, crying.",
        "Now. " * 99,
    ]
    # verl's server is vLLM's, by the same options: an encoder has no prefix to cache.
    options = [
        "--runner",
        "pooling",
        "--dtype",
        "float32",
        "--no-enable-prefix-caching",
        "--enforce-eager",
        *ONE_PROCESS,
    ]
    with started([sys.executable, "-m", "verl_omni", "serve", classifier, *options], tmp_path / "log") as address:
        verifiers = load(classifier), served(classifier, address)
        here, there = (np.array(verifier.probabilities(sentences_of_all)) for verifier in verifiers)
        assert np.abs(here - there).max() < 1e-4
        score = compute_score(
            "demo", completion(TEXT), "angry", reward_router_address=address, explanation={"verifier": classifier}
        )
    assert score["explanation"] == 0.5


def test_every_emotion_of_the_lexicon_supports_itself():
    for emotion, words in EMOTIONS.items():
        for word in words.split():
            assert explanation_reward(completion(f"One sees {word}."), emotion) == 1.0


def test_a_verifier_reads_an_explanation_once_for_the_reward_and_its_metrics():
    asked = []

    def verifier(texts):
        asked.append(texts)
        return [["happy"] for _ in texts]

    terms = {"explanation": {"weight": 1.0, "verifier": verifier}}
    scores = compute_score("demo", "<think>She laughs.</think><answer>happy</answer>", "happy", **terms)
    assert asked == [["She laughs."]] and scores["explanation"] == scores["fcr"] == 1.0
