"""The GPU recipes' own settings on a CPU, with stand-ins for what only a GPU has."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from originals import HARDWARE, Golden
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, AutoProcessor, PreTrainedModel

import verl_omni.models  # noqa: F401
from verl_omni.models.humanomni.configuration import HumanOmniConfig
from verl_omni.models.humanomni.modeling import HumanOmniQwen2ForCausalLM
from verl_omni.models.tower_outputs import TOWER_OUTPUTS

# ---- flash-attention -------------------------------------------------------------------------------------------------


def varlen_by_sdpa(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=False, softmax_scale=None, dropout_p=0.0
):
    """``flash_attn_varlen_func``: ``[total, heads, dim]``, each sequence by sdpa on its own."""
    assert causal and dropout_p == 0.0 and torch.equal(cu_seqlens_q, cu_seqlens_k) and max_seqlen_q == max_seqlen_k
    outputs = []
    for start, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        query, key, value = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
        attended = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=softmax_scale, enable_gqa=True
        )
        outputs.append(attended[0].transpose(0, 1))
    varlen_by_sdpa.sequences.append(len(outputs))
    return torch.cat(outputs)


def stand_in_for_flash_attention(monkeypatch):
    """A package ``flash_attn`` that transformers takes for the real one."""
    import transformers.modeling_flash_attention_utils as flash

    def only_varlen(*_, **__):
        raise AssertionError("packed sequences go by flash_attn_varlen_func")

    stub, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    stub.__version__, stub.flash_attn_varlen_func = "2.8.3", varlen_by_sdpa
    stub.flash_attn_func = stub.flash_attn_with_kvcache = only_varlen
    padding.pad_input = padding.unpad_input = only_varlen
    monkeypatch.setitem(sys.modules, "flash_attn", stub)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(flash, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(flash, "_loaded_implementation", None)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)
    varlen_by_sdpa.sequences = []


def packed(processor) -> dict[str, torch.Tensor]:
    """Three prompts of unequal length as verl packs them (``use_remove_padding``)."""
    clips = [Golden(case, path).inputs(processor) for case, path in
             (("landscape", "train"), ("square", "infer"), ("portrait", "train"))]  # fmt: skip
    batch = {name: torch.cat([clip[name] for clip in clips])
             for name in ("pixel_values", "bert_input_ids", "bert_attention_mask", "input_features")}  # fmt: skip
    rows = [clip["input_ids"][0] for clip in clips]
    batch["input_ids"] = torch.cat(rows)[None]
    batch["position_ids"] = torch.cat([torch.arange(len(row)) for row in rows])[None]
    return batch


def weighted_loss(logits: torch.Tensor) -> torch.Tensor:
    weights = torch.linspace(-1, 1, logits.shape[1], device=logits.device)[:, None]
    return (logits.float().log_softmax(-1)[0] * weights).mean()


def trained(model, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.train()
    logits = model(**batch, use_cache=False).logits
    weighted_loss(logits).backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("hardware", HARDWARE)
def test_packed_flash_attention_with_checkpointing_is_each_sequence_by_sdpa(
    hardware, converted, monkeypatch, record_property
):
    """flash-attn's kernels in bfloat16 on a GPU; on a CPU transformers' path around them, in float32."""
    if hardware == "cpu":
        stand_in_for_flash_attention(monkeypatch)
    dtype, bound = (torch.float32, 1e-4) if hardware == "cpu" else (torch.bfloat16, 0.1)
    batch = {name: tensor.to(hardware) for name, tensor in packed(AutoProcessor.from_pretrained(converted)).items()}

    def model(attention: str) -> torch.nn.Module:
        settings = {"attn_implementation": attention, "dtype": dtype}
        return AutoModelForCausalLM.from_pretrained(converted, **settings).to(hardware)

    flash = model("flash_attention_2")
    flash.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    logits, gradients = trained(flash, batch)
    if hardware == "cpu":
        layers = flash.config.num_hidden_layers
        assert varlen_by_sdpa.sequences == [3] * 2 * layers  # and again in the backward pass: it was checkpointed
    TOWER_OUTPUTS.clear()
    sdpa, sdpa_gradients = trained(model("sdpa"), batch | {"attention_mask": None})
    name = "flash-attn" if hardware == "cuda" else "flash-attn's stand-in"
    record_property(f"{name}, packed - sdpa, logits, max", float((logits - sdpa).abs().max()))
    torch.testing.assert_close(logits, sdpa, atol=bound, rtol=bound)
    assert gradients.keys() == sdpa_gradients.keys()
    found, expected = (
        torch.cat([g.float().flatten() for g in grads.values()]) for grads in (gradients, sdpa_gradients)
    )
    assert F.cosine_similarity(found, expected, dim=0) > 1 - bound
    if hardware == "cpu":
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


# ---- autocast --------------------------------------------------------------------------------------------------------


class CudaAutocast(TorchFunctionMode):
    """On top of a CPU's autocast: what CUDA's returns in float32, and a CPU's in bfloat16."""

    FLOAT32 = (F.layer_norm, F.softmax, torch.softmax, torch.Tensor.softmax, torch.logsumexp, torch.cumsum)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.FLOAT32 and isinstance(args[0], torch.Tensor) and args[0].is_floating_point():
            args = [a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
            kwargs = {k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
                      for k, v in kwargs.items()}  # fmt: skip
            with torch.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


@pytest.fixture(scope="module")
def in_float32(converted) -> tuple[dict, torch.Tensor, dict[str, torch.Tensor]]:
    """A batch, its logits and gradients."""
    batch = packed(AutoProcessor.from_pretrained(converted))
    return batch, *trained(AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32), batch)


# Of the parameters: SFT's, and FSDP2's in a step.
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16])
def test_autocast_as_on_cuda_trains_all_that_float32_trains(converted, in_float32, dtype):
    batch, exact, expected = in_float32
    TOWER_OUTPUTS.clear()
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16), CudaAutocast():
        logits, gradients = trained(model, batch)
    assert (logits.float() - exact).abs().mean() < 0.05
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
    similarity = F.cosine_similarity(
        torch.cat([g.float().flatten() for g in gradients.values()]),
        torch.cat([expected[name].flatten() for name in gradients]), dim=0,
    )  # fmt: skip
    assert similarity > 0.98


# ---- weight updates --------------------------------------------------------------------------------------------------

QWEN2_7B = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}  # fmt: skip


@pytest.fixture
def sent(monkeypatch):
    """What verl's sender does with weights on the meta device: ``sent(weights, use_shm)`` -> messages."""
    transfer = importlib.import_module("verl.workers.rollout.vllm_rollout.bucketed_weight_transfer")

    def send(weights, megabytes: int, use_shm: bool = False) -> list[dict]:
        import asyncio

        messages = []
        sender = transfer.BucketedWeightSender("inproc://nobody", megabytes, use_shm)
        socket = SimpleNamespace(send_pyobj=messages.append, recv=lambda: None, close=lambda: None)
        monkeypatch.setattr(sender, "_init_socket", lambda: setattr(sender, "socket", socket))
        buffer = torch.empty(sender.bucket_size, dtype=torch.uint8, device="meta")
        monkeypatch.setattr(sender, "_init_buffer", lambda: setattr(sender, "buffer", buffer))
        monkeypatch.setattr(transfer, "reduce_tensor", lambda tensor: "handle")
        asyncio.run(sender.async_send_weights(iter(weights)))
        return messages

    return send


def test_an_embedding_larger_than_the_bucket_goes_by_cuda_ipc_and_not_through_shared_memory(sent):
    """HumanOmni-7B in float32: 2.18 GB; verl's bucket has 2,048 MB."""
    with torch.device("meta"):
        weights = HumanOmniQwen2ForCausalLM(HumanOmniConfig(**QWEN2_7B)).float().state_dict()
    messages = sent(weights.items(), 2048)
    assert {name for message in messages for name in message["bucket_meta"]} == weights.keys()
    alone = {name for message in messages for name, meta in message["bucket_meta"].items() if meta["handle"]}
    assert alone == {"model.embed_tokens.weight", "lm_head.weight"}
    with pytest.raises(AssertionError, match="update_weights_bucket_megabytes"):
        sent(weights.items(), 2048, use_shm=True)
    assert len(sent(weights.items(), 4096, use_shm=True)) > 1
