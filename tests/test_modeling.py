"""HumanOmni computes what the original computed, forward, backward and in generation; float32 on a CPU."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from originals import HUMANOMNI, PATHS, Golden, expand
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

import verl_omni.models  # noqa: F401
from verl_omni.models.humanomni.modeling import placeholder_positions
from verl_omni.models.humanomni.tiny import build_tiny

TRAIN = sorted({case for case, path in PATHS if path == "train"})


@pytest.fixture(scope="module")
def processor(converted):
    return AutoProcessor.from_pretrained(converted)


@pytest.fixture(scope="module")
def model(converted):
    return AutoModelForCausalLM.from_pretrained(converted)


@pytest.fixture
def trained(converted):
    """A model of one's own, for gradients; in eval mode, as the original's recorded losses were."""
    return AutoModelForCausalLM.from_pretrained(converted)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("tiny"))


def close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def media(*goldens, processor):
    """The model inputs of several clips, concatenated as verl does."""
    inputs = [golden.inputs(processor) for golden in goldens]
    names = ("pixel_values", "bert_input_ids", "bert_attention_mask", "input_features")
    return {name: torch.cat([item[name] for item in inputs]) for name in names}


# ---------------------------------------------------------------- forward and generation


@torch.no_grad()
@pytest.mark.parametrize("case", ["landscape"])
def test_every_step_on_the_way(model, processor, case):
    golden, body = Golden(case, "train"), model.model
    inputs = golden.inputs(processor)
    patches, sound = body.encode_video(inputs["pixel_values"]), body.encode_audio(inputs["input_features"])
    close(patches[0], golden["vision_tower_out"])
    close(sound, golden["audio_tower_out"])
    close(body.mm_projector.convolve(patches, "video"), golden["proj_video"])
    close(body.mm_projector.convolve(patches, "body"), golden["proj_body"])
    close(body.mm_projector.pool(patches), golden["face_pooled"].flatten(1, 2))
    del inputs["attention_mask"]
    close(body.embed(**inputs), golden["inputs_embeds"])
    input_features = inputs.pop("input_features")
    del inputs["input_ids"]
    close(body.get_video_features(**inputs), golden["video_tokens"])
    close(body.get_audio_features(input_features), golden["audio_tokens"])
    whole = golden.inputs(processor)
    close(model(**whole).logits, golden["logits"])


@torch.no_grad()
@pytest.mark.parametrize(("case", "path"), PATHS)
def test_branch_probabilities_and_logits(model, processor, case, path):
    golden = Golden(case, path)
    inputs = golden.inputs(processor)
    close(model.model.branch_probs(inputs["bert_input_ids"], inputs["bert_attention_mask"]), golden["branch_probs"])
    logits = model(**inputs).logits
    close(logits.logsumexp(-1), golden["logits_logsumexp"])
    assert torch.equal(logits.argmax(-1), golden["logits_argmax"])
    if path == "train":
        close(logits[:, -16:], golden["logits_last16"])


@pytest.mark.parametrize(("case", "path"), PATHS)
def test_greedy_tokens(model, processor, case, path):
    golden = Golden(case, path)
    inputs = golden.inputs(processor)
    recorded = {"train": {1.0: "greedy_ids"}}.get(path, {1.1: "mm_infer_ids", 1.0: "greedy_ids_rep1.0"})
    for penalty, name in recorded.items():
        ids = model.generate(**inputs, max_new_tokens=16, do_sample=False, repetition_penalty=penalty)
        assert ids[:, inputs["input_ids"].shape[1] :].tolist() == golden[name].tolist(), penalty


def test_greedy_tokens_without_cache(model, processor):
    golden = Golden("landscape", "train")
    inputs = golden.inputs(processor)
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False, repetition_penalty=1.0, use_cache=False)
    assert ids[0, inputs["input_ids"].shape[1] :].tolist() == golden["greedy_ids"][0, :6].tolist()


def log_probs(logits, ids):
    """Log-probabilities of ``ids [B, R]`` at the last R positions of ``logits [B, L, V]``."""
    logits = logits[:, -ids.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)


@torch.no_grad()
@pytest.mark.parametrize("case", TRAIN)
def test_response_log_probs(model, processor, case):
    golden = Golden(case, "train")
    inputs, responses, mask = golden.inputs(processor), golden["response_ids"], golden["response_mask"]
    prompt = inputs["input_ids"].expand(len(responses), -1)
    repeated = {name: value.repeat(2, *[1] * (value.dim() - 1)) for name, value in inputs.items()}
    repeated["input_ids"] = torch.cat([prompt, responses], dim=1)
    repeated["attention_mask"] = torch.cat([torch.ones_like(prompt), mask], dim=1)
    found = log_probs(model(**repeated).logits, responses) * mask
    close(found, golden["response_logps"] * mask)
    close(found.sum(1), (golden["response_logps"] * mask).sum(1), 1e-3)


# ---------------------------------------------------------------- training


def grad_norms(model):
    return {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(model, recorded):
    found = grad_norms(model)
    assert found.keys() == recorded.keys()
    for name, norm in recorded.items():
        assert found[name] == pytest.approx(norm, rel=1e-3, abs=1e-6), name


def test_cold_start_batch(trained, processor):
    batch = load_file(HUMANOMNI / "sft_batch/batch.safetensors")
    recorded = json.loads((HUMANOMNI / "sft_batch/batch.json").read_text())
    texts = [text["conversation"] for text in recorded["texts"]]
    for token, tag in ((processor.video_token, "<video>"), (processor.audio_token, "<audio>")):
        texts = [text.replace(tag, token) for text in texts]
    clips = [Golden(case, "train").inputs(processor) for case in ("landscape", "portrait")]
    inputs = processor(text=texts, videos=[np.zeros((8, 8, 8, 3), np.uint8)] * 2, audio=[np.zeros(9)] * 2,
                       video_metadata=[{"instruction": text["guided_prompt"][0]} for text in recorded["texts"]],
                       padding_side="right", return_tensors="pt")  # fmt: skip
    for name in ("pixel_values", "input_features"):
        inputs[name] = torch.cat([clip[name] for clip in clips])
    for row, ids, mask in zip(inputs["input_ids"], batch["input_ids"], inputs["attention_mask"], strict=True):
        expected = expand(ids, trained.config)
        assert row[mask.bool()].tolist() == expected[: mask.sum()].tolist()
    assert torch.equal(inputs["attention_mask"], batch["merged_attention_mask"])
    out = trained(**inputs, labels=batch["merged_labels"])
    assert float(out.loss) == pytest.approx(recorded["loss"], rel=1e-3)
    out.loss.backward()
    assert_same_gradients(trained, recorded["grad_norms"])


def test_grpo_step_with_verls_loss(trained, processor):
    """The recipe's settings: G completions of one prompt, k3 KL in the loss, sequence then batch means."""
    core = pytest.importorskip("verl.trainer.ppo.core_algos")
    recorded = json.loads((HUMANOMNI / "grpo/grpo.json").read_text())
    tensors = load_file(HUMANOMNI / "grpo/grpo.safetensors")
    inputs, completions = Golden("landscape", "train").inputs(processor), tensors["completion_ids"]
    group = len(completions)
    batch = {name: value.repeat(group, *[1] * (value.dim() - 1)) for name, value in inputs.items()}
    batch["input_ids"] = torch.cat([batch["input_ids"], completions], dim=1)
    batch["attention_mask"] = torch.cat([batch["attention_mask"], tensors["attention_mask"][:, -12:]], dim=1)
    found = log_probs(trained(**batch, use_cache=False).logits, completions)
    close(found, tensors["logps"])

    ended = (completions == trained.config.eos_token_id).cumsum(1)
    mask = ((ended == 0) | ((ended == 1) & (completions == trained.config.eos_token_id))).float()
    rewards = torch.zeros_like(mask)
    rewards[:, 0] = torch.tensor(recorded["rewards_oracle"])
    advantages, _ = core.compute_grpo_outcome_advantage(rewards, mask, index=np.zeros(group, dtype=int))
    config = SimpleNamespace(
        clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=3.0, global_batch_info={},
        get=lambda name, default=None: default,
    )  # fmt: skip
    how = {"loss_agg_mode": "seq-mean-token-mean"}
    policy, _ = core.compute_policy_loss_vanilla(found.detach(), found, advantages, mask, config=config, **how)
    kl = core.agg_loss(core.kl_penalty(found, tensors["ref_logps"], "low_var_kl"), mask, **how)
    loss = policy + recorded["beta"] * kl
    assert float(kl) == pytest.approx(recorded["metrics"]["kl"][0], rel=1e-3)
    assert float(loss) == pytest.approx(recorded["loss"], rel=1e-3)
    loss.backward()
    assert_same_gradients(trained, recorded["grad_norms"])


def test_what_is_trained(model):
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    trained = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert frozen == {"vision_tower", "audio_tower", "bert_model"}  # of BERT, the pooler that nothing uses
    assert trained == {
        *("embed_tokens", "layers", "norm", "mm_projector", "audio_projector", "bert_model", "bert_gate")
    }


def test_a_frozen_bert_leaves_its_gate_trained_and_is_not_saved_with_the_model(converted, tmp_path):
    config = AutoConfig.from_pretrained(converted)
    config.freeze_bert = True
    model = AutoModelForCausalLM.from_pretrained(converted, config=config).train()
    bert, gate = model.model.bert_model, model.model.bert_gate
    assert not any(p.requires_grad for p in bert.parameters()) and all(p.requires_grad for p in gate.parameters())
    model.save_pretrained(tmp_path)
    assert "freeze_bert" not in json.loads((tmp_path / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(tmp_path).train()
    assert again.model.bert_model.encoder.layer[0].attention.self.query.weight.requires_grad, "GRPO trains it"


def test_train_mode_changes_no_number(trained, processor):
    inputs = Golden("landscape", "train").inputs(processor)
    evaluated = trained.eval()(**inputs).logits
    assert torch.equal(trained.train()(**inputs).logits, evaluated)
    assert not trained.model.bert_model.training and not trained.model.vision_tower.training


@pytest.mark.parametrize("kept", [(), ("pixel_values", "bert_input_ids", "bert_attention_mask"), ("input_features",)])
def test_a_missing_modality_gets_zero_gradients(trained, processor, kept):
    """Data-parallel ranks must agree on which parameters have a gradient."""
    tags = {"pixel_values": processor.video_token, "input_features": processor.audio_token}
    inputs = Golden("landscape", "train").inputs(processor)
    text = "".join(tag for name, tag in tags.items() if name in kept) + "sad"
    for name, count in (("pixel_values", 32), ("input_features", 50)):
        text = text.replace(tags[name], tags[name] * count)
    ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
    trained.train()
    trained(input_ids=ids, labels=ids, **{name: inputs[name] for name in kept}).loss.backward()
    with_gradient = {name for name, p in trained.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in trained.named_parameters() if p.requires_grad}
    gate = trained.model.bert_gate[0].weight.grad.abs().max()
    assert (gate > 0) == ("pixel_values" in kept)
    assert (trained.model.audio_projector[0].weight.grad.abs().max() > 0) == ("input_features" in kept)


def test_gradient_checkpointing(trained, processor):
    inputs = Golden("landscape", "train").inputs(processor)
    trained.train()
    trained(**inputs, labels=inputs["input_ids"]).loss.backward()
    expected = grad_norms(trained)
    trained.zero_grad()
    trained.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
    assert grad_norms(trained) == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------- batches


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_and_packed_batches_equal_single_samples(converted, processor, attention):
    """Two clips of different questions, plus a text: right-padded, left-padded, and packed as verl does."""
    model = AutoModelForCausalLM.from_pretrained(converted, attn_implementation=attention)
    goldens = Golden("landscape", "train"), Golden("noaudio", "infer")
    singles = [golden.inputs(processor) for golden in goldens]
    text = processor(text="no media", return_tensors="pt")
    expected = [model(**single).logits[0] for single in [*singles, text]]
    rows = [single["input_ids"][0] for single in [*singles, text]]
    both = media(*goldens, processor=processor)

    longest = max(map(len, rows))
    for side in ("right", "left"):
        pads = [(longest - len(row), 0) if side == "left" else (0, longest - len(row)) for row in rows]
        ids = torch.stack([torch.nn.functional.pad(row, pad, value=576) for row, pad in zip(rows, pads, strict=True)])
        mask = torch.stack([torch.nn.functional.pad(torch.ones_like(r), p) for r, p in zip(rows, pads, strict=True)])
        position_ids = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=position_ids, use_cache=False, **both).logits
        for row, row_mask, single in zip(logits, mask, expected, strict=True):
            close(row[row_mask.bool()], single, 2e-5)

    position_ids = torch.cat([torch.arange(len(row)) for row in rows])[None]
    packed = model(
        input_ids=torch.cat(rows)[None], attention_mask=None, position_ids=position_ids, use_cache=False, **both
    ).logits[0]
    for part, single in zip(packed.split([len(row) for row in rows]), expected, strict=True):
        close(part, single, 2e-5)


@torch.no_grad()
def test_bert_ignores_padding_and_the_rest_of_the_batch(model, processor):
    questions = ["sad?", "Which emotion is the most obvious to you, in the video?", "sad?"]
    batch = processor.process_questions(questions)
    together = model.model.branch_probs(**batch)
    alone = torch.cat([model.model.branch_probs(**processor.process_questions([q])) for q in questions])
    short = model.model.branch_probs(batch["bert_input_ids"][:1, :9], batch["bert_attention_mask"][:1, :9])
    assert torch.equal(together, alone)
    assert torch.equal(short, alone[:1])


@torch.no_grad()
def test_a_sampled_placeholder_is_no_medium(model, processor):
    inputs = Golden("landscape", "train").inputs(processor)
    expected = model(**inputs).logits
    config, length = model.config, inputs["input_ids"].shape[1]
    sampled = torch.tensor([[config.video_token_id, config.audio_token_id, config.audio_token_id]])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], sampled], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    close(model(**inputs).logits[:, :length], expected, 2e-5)


def test_placeholders_and_features_must_match(model, processor):
    inputs = Golden("landscape", "train").inputs(processor)
    cut = {name: inputs[name][:, 60:] for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="raise its maximum length"):
        model(**dict(inputs) | cut)
    with pytest.raises(ValueError, match="pixel_values: 0 features but 32 placeholders"):
        model(input_ids=inputs["input_ids"], input_features=inputs["input_features"])
    with pytest.raises(ValueError, match="input_features: 50 features but 0 placeholders"):
        model(input_ids=torch.tensor([[1, 2]]), input_features=inputs["input_features"])
    with pytest.raises(ValueError, match="pass media with input_ids"):
        model(inputs_embeds=torch.zeros(1, 2, 128), input_features=inputs["input_features"])


def test_placeholder_runs():
    ids = torch.tensor([[7, 9, 9, 9, 7, 9], [9, 9, 9, 9, 9, 9]])
    assert placeholder_positions(ids[:1], 9, 3).tolist() == [1, 2, 3]
    assert placeholder_positions(ids[1:], 9, 3).tolist() == [0, 1, 2, 3, 4, 5]
    assert placeholder_positions(ids, 5, 3).tolist() == []


# ---------------------------------------------------------------- the tiny model


def test_the_tiny_model_hears_and_sees(tiny):
    """Frozen random towers must tell clips apart, or nothing can be learnt from them."""
    model, processor = AutoModelForCausalLM.from_pretrained(tiny), AutoProcessor.from_pretrained(tiny)
    frames = np.zeros((2, 8, 64, 64, 3), np.uint8)
    frames[0, :, 16:48, 16:48] = (220, 200, 40)
    frames[1, :, :32] = (40, 60, 200)
    time = np.arange(2 * 16000) / 16000
    waves = [0.3 * np.sin(2 * np.pi * pitch * time).astype(np.float32) for pitch in (200, 800)]
    text = [f"{processor.video_token}{processor.audio_token} Why?"] * 2
    inputs = processor(text=text, videos=list(frames), audio=waves, return_tensors="pt")
    with torch.no_grad():
        video = model.model.get_video_features(
            inputs["pixel_values"], inputs["bert_input_ids"], inputs["bert_attention_mask"]
        )
        audio = model.model.get_audio_features(inputs["input_features"])
    for first, second in (video, audio):
        assert (first - second).norm() / first.norm() > 0.2


def test_the_tiny_model_is_reproducible(tiny, tmp_path):
    again = build_tiny(tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    assert (again / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
