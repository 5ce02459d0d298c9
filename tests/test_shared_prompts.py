"""The prompt once per group, and no logits where nobody reads them: numbers and gradients of the plain forward."""

from itertools import pairwise

import peft
import pytest
import torch
from originals import CASES, HARDWARE
from transformers import AutoModelForCausalLM, AutoProcessor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import verl_omni.models  # noqa: F401
from verl_omni.models import sharing
from verl_omni.models.tower_outputs import TOWER_OUTPUTS

MEDIA = ("pixel_values", "bert_input_ids", "bert_attention_mask", "input_features")
# Clip, question, senses and answer's length. Groups, of which one is torn; a question of its own; one sense alone; an
# answer of no token, and of one; a row without mates.
ROWS = [
    *[("landscape", "How?", "va", length) for length in (5, 9, 0, 1)],
    *[("square", "How?", "va", length) for length in (7, 7)],
    ("landscape", "Who is it?", "va", 4),
    *[("landscape", "How?", "v", length) for length in (3, 6)],
    *[("square", "How?", "a", length) for length in (2, 8)],
    ("landscape", "How?", "va", 5),
    ("portrait", "How?", "va", 3),
]


@pytest.fixture(scope="module")
def model(converted):
    return AutoModelForCausalLM.from_pretrained(converted, attn_implementation="sdpa")


@pytest.fixture(scope="module")
def samples(converted) -> list[dict[str, torch.Tensor]]:
    """Rows as verl has them; some of the answers have sampled a placeholder or begin alike."""
    processor, generator = AutoProcessor.from_pretrained(converted), torch.Generator().manual_seed(0)
    samples = []
    for case, question, senses, length in ROWS:
        media = {"v": {"type": "video", "path": CASES[case]}, "a": {"type": "audio", "path": CASES[case]}}
        content = [*(media[sense] for sense in senses), {"type": "text", "text": question}]
        sample = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        answer = torch.randint(5, 200, (length,), generator=generator)
        answer[:2] = 7
        answer[3:4] = processor.video_token_id
        samples.append({**sample, "input_ids": torch.cat([sample["input_ids"][0], answer]), "answer": length})
    return samples


def media_of(samples) -> dict[str, torch.Tensor]:
    return {name: torch.cat([row[name] for row in samples if name in row]) for name in MEDIA}


def packed(samples) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    ids = [row["input_ids"] for row in samples]
    positions = torch.cat([torch.arange(len(row)) for row in ids])
    batch = {"input_ids": torch.cat(ids)[None], "position_ids": positions[None], **media_of(samples)}
    return batch, torch.ones(1, len(positions), dtype=torch.bool)


def padded(samples, side: str = "right") -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    pad = lambda rows: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)  # noqa: E731
    ids, mask = pad([row["input_ids"] for row in samples]), pad([torch.ones_like(row["input_ids"]) for row in samples])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **media_of(samples)}, mask.bool()


def left_padded(samples):
    return padded(samples, "left")


LAYOUTS = pytest.mark.parametrize("layout", [packed, padded, pytest.param(left_padded, marks=pytest.mark.slow)])


def run(model, batch, valid, read=None, **kwargs):
    """What is read of the outputs, and the gradients of a loss in which no two tokens weigh the same."""
    model.zero_grad()
    TOWER_OUTPUTS.clear()
    output = model(**batch, use_cache=False, **kwargs)
    values = [output.log_probs, output.entropy] if kwargs else [output.logits]
    where = valid if read is None else read
    found = [value[where] for value in values]
    weights = torch.linspace(0.5, 1.5, len(found[0]))
    loss = sum((value.reshape(len(value), -1).sin().mean(1) * weights).mean() for value in found)
    loss.backward()
    return found, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(shared, plain):
    for found, expected in zip(shared[0], plain[0], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert shared[1].keys() == plain[1].keys()
    for name, gradient in shared[1].items():
        torch.testing.assert_close(  # an embedding's is a sum over tokens: its last digits are the instruction set's
            gradient, plain[1][name], atol=1e-5, rtol=2e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.fixture
def computed(monkeypatch):
    """Tokens that went through the language model, forward by forward."""
    counts, decode = [], sharing.decode_shared

    def counting(*args, **kwargs):
        plan = args[4]
        counts.extend([] if plan is None else [len(plan.unique)])
        return decode(*args, **kwargs)

    monkeypatch.setattr("verl_omni.models.humanomni.modeling.decode_shared", counting)
    return counts


@LAYOUTS
def test_logits_and_gradients_are_those_of_the_plain_forward(layout, model, samples, computed, monkeypatch):
    batch, valid = layout(samples)
    shared = run(model.train(), batch, valid)
    assert len(computed) == 1 and computed[0] < 0.7 * int(valid.sum())
    monkeypatch.setenv("VERL_OMNI_SHARING", "0")
    assert_equal(shared, run(model, batch, valid))
    assert len(computed) == 1  # the switch


@pytest.mark.parametrize("hardware", HARDWARE)
def test_log_probs_in_the_recipes_precision(hardware, converted, samples, computed, monkeypatch, record_property):
    """Packed and by flash-attn on a GPU; padded and by sdpa on a CPU. bfloat16: what rounding leaves of equality."""
    layout, attention = (packed, "flash_attention_2") if hardware == "cuda" else (padded, "sdpa")
    model = AutoModelForCausalLM.from_pretrained(converted, attn_implementation=attention, dtype=torch.bfloat16)
    batch, valid = ({name: tensor.to(hardware) for name, tensor in part.items()} if isinstance(part, dict)
                    else part.to(hardware) for part in layout(samples))  # fmt: skip
    log_probs = []
    for sharing_on in ("1", "0"):
        monkeypatch.setenv("VERL_OMNI_SHARING", sharing_on)
        TOWER_OUTPUTS.clear()
        with torch.no_grad():
            logits = model.to(hardware).train()(**batch, use_cache=False).logits[valid]
        log_probs.append(logits.float().log_softmax(-1))
    error = (log_probs[0] - log_probs[1]).abs()
    record_property("prompt once - prompt each time, bfloat16 log-probs, mean", float(error.mean()))
    assert len(computed) == 1 and error.mean() < 0.02 and error.max() < 0.3


@LAYOUTS
def test_under_gradient_checkpointing(layout, converted, samples, computed, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(converted, attn_implementation="sdpa").train()
    batch, valid = layout(samples)
    monkeypatch.setenv("VERL_OMNI_SHARING", "0")
    plain = run(model, batch, valid)
    monkeypatch.setenv("VERL_OMNI_SHARING", "1")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_equal(run(model, batch, valid), plain)
    assert len(computed) == 1


def test_with_adapters(converted, samples, computed, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(converted, attn_implementation="sdpa")
    config = peft.LoraConfig(target_modules="all-linear", exclude_modules=".*(tower|bert|projector).*")
    model = peft.get_peft_model(model, config).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    batch, valid = padded(samples)
    shared = run(model, batch, valid)
    monkeypatch.setenv("VERL_OMNI_SHARING", "0")
    assert_equal(shared, run(model, batch, valid))
    assert len(computed) == 1


def answers_in(batch, valid, samples) -> torch.Tensor:
    """Where verl reads: from each prompt's last token to the one before the answer's last."""
    read = torch.zeros_like(valid)
    ends = valid.flatten().nonzero().squeeze(1)[torch.tensor([len(row["input_ids"]) for row in samples]).cumsum(0) - 1]
    for row, end in zip(samples, ends.tolist(), strict=True):
        read.view(-1)[end - row["answer"] : end] = True
    return read


@LAYOUTS
@pytest.mark.parametrize("sharing_on", ["0", "1"])
def test_log_probs_and_entropy_are_those_of_the_logits(layout, sharing_on, model, samples, monkeypatch):
    pytest.importorskip("verl")
    batch, valid = layout(samples)
    read = answers_in(batch, valid, samples)
    labels = {"shift_labels": batch["input_ids"].roll(-1, -1)} if layout is packed else {}
    monkeypatch.setenv("VERL_OMNI_SHARING", sharing_on)
    fused = run(model.train(), batch, valid, read, temperature=0.7, return_dict=True, **labels)

    monkeypatch.setenv("VERL_OMNI_SHARING", "0")
    model.zero_grad()
    logits = model(**batch, use_cache=False).logits / 0.7
    everything = logits.log_softmax(-1)
    log_probs = everything.gather(-1, batch["input_ids"].roll(-1, -1)[..., None])[..., 0]
    found = [log_probs[read], -(everything.exp() * everything).sum(-1)[read]]
    weights = torch.linspace(0.5, 1.5, len(found[0]))
    sum((value.sin() * weights).mean() for value in found).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert_equal(fused, (found, gradients))


def test_no_logits_are_made_of_media_and_shared_tokens(model, samples, monkeypatch):
    functional = pytest.importorskip("verl.utils.experimental.torch_functional")
    made, forward = [], functional.FusedLinearForPPO.forward
    monkeypatch.setattr(
        functional.FusedLinearForPPO,
        "forward",
        lambda self, h, *a, **k: made.append(len(h)) or forward(self, h, *a, **k),
    )
    group = samples[:4]
    batch, _ = packed(group)
    with torch.no_grad():
        model(**batch, use_cache=False, temperature=1.0)
    text = len(group[2]["input_ids"]) - model.config.num_video_tokens - model.config.num_audio_tokens
    assert made[0] <= text + sum(row["answer"] + 2 for row in group)


def test_a_fused_kernel_of_verls_that_drops_media_is_refused(model):
    patch = pytest.importorskip("verl.models.transformers.monkey_patch").patch_forward_with_backends
    forward = type(model).forward
    patch(model, use_fused_kernels=True, fused_kernels_backend="verl_omni")
    assert type(model).forward is forward
    with pytest.raises(ValueError, match="without its media"):
        patch(model, use_fused_kernels=True, fused_kernels_backend="torch")
    assert type(model).forward is forward


def reference_varlen(module, query, key, value, attention_mask, *, cu_seq_lens_q=None, cu_seq_lens_k=None, **kwargs):
    """What flash-attn says of its varlen function: sequence by sequence, causal from the bottom right corner."""
    if cu_seq_lens_q is None:  # the towers
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    outputs = []
    bounds = zip(pairwise(cu_seq_lens_q.tolist()), pairwise(cu_seq_lens_k.tolist()), strict=True)
    for (q0, q1), (k0, k1) in bounds:
        mask = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril(diagonal=(k1 - k0) - (q1 - q0))
        states = query[:, :, q0:q1], key[:, :, k0:k1], value[:, :, k0:k1]
        outputs.append(torch.nn.functional.scaled_dot_product_attention(*states, attn_mask=mask, enable_gqa=True))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def test_packed_attention_is_asked_what_flash_attention_takes(model, samples, monkeypatch):
    batch, valid = packed(samples)
    shared = run(model.train(), batch, valid)
    varlen = sharing.share_in_attention(reference_varlen, varlen=True)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", varlen)
    assert_equal(run(model, batch, valid), shared)


def test_equal_text_about_other_media_is_not_shared(model, samples, computed):
    batch, _ = packed([samples[0], samples[4], samples[6], samples[7]])
    model(**batch, use_cache=False)
    assert computed == []
