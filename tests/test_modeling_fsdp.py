"""Two FSDP2 ranks, wrapped as verl wraps them, of which one has a text alone: nothing hangs, gradients agree."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import Golden
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

import verl_omni.models  # noqa: F401


def batches(processor):
    """Rank 0: a text. Rank 1: two clips with different questions."""
    text = processor(text="no media at all", return_tensors="pt")
    clips = [Golden("landscape", "train").inputs(processor), Golden("square", "infer").inputs(processor)]
    names = ("pixel_values", "bert_input_ids", "bert_attention_mask", "input_features")
    rows = [clip["input_ids"][0] for clip in clips]
    packed = {name: torch.cat([clip[name] for clip in clips]) for name in names}
    packed["input_ids"] = torch.cat(rows)[None]
    packed["position_ids"] = torch.cat([torch.arange(len(row)) for row in rows])[None]
    return dict(text), packed


def load(directory, freeze_bert):
    config = AutoConfig.from_pretrained(directory)
    config.freeze_bert = freeze_bert  # as verl sets what a recipe says under override_config
    return AutoModelForCausalLM.from_pretrained(directory, config=config)


def loss_of(model, batch):
    return model(**batch, use_cache=False).logits.logsumexp(-1).mean()


def worker(rank, directory, init_file, out, freeze_bert):
    from verl.utils.fsdp_utils import _select_fsdp2_wrap_targets

    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    processor, model = AutoProcessor.from_pretrained(directory), load(directory, freeze_bert)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
    for module in [*_select_fsdp2_wrap_targets(model, model._no_split_modules), model]:
        fully_shard(module, mesh=mesh)
    batch = batches(processor)[rank]
    with torch.no_grad():  # as verl computes log-probabilities
        loss_of(model.eval(), batch)
    loss_of(model.train(), batch).backward()
    gradients = {n: p.grad.full_tensor() for n, p in model.named_parameters() if p.grad is not None}
    if rank == 0:
        save_file(gradients, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("tied", "freeze_bert"), [(True, False), (False, False), (False, True)])
def test_ranks_with_and_without_media(converted, tmp_path, tied, freeze_bert):
    pytest.importorskip("verl")
    model, processor = AutoModelForCausalLM.from_pretrained(converted), AutoProcessor.from_pretrained(converted)
    if not tied:  # verl then shards every embedding separately, those of BERT and of the towers too
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
        model.config.tie_word_embeddings = False
    directory = tmp_path / "model"
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    files = (str(tmp_path / "init"), str(tmp_path / "gradients.safetensors"))
    mp.spawn(worker, (str(directory), *files, freeze_bert), nprocs=2)

    model = load(directory, freeze_bert).train()
    for batch in batches(processor):
        (loss_of(model, batch) / 2).backward()
    found = load_file(tmp_path / "gradients.safetensors")
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert any(".bert_model." in name for name in found) != freeze_bert and "model.bert_gate.0.weight" in found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- prompts once per group


def group_batches(processor):
    """Rank 0: two groups, a prompt computed once for each. Rank 1: a text, and a clip without mates; nothing shared."""
    torch.manual_seed(0)

    def packed(*rows: tuple[str, str, int]) -> dict[str, torch.Tensor]:
        inputs = [Golden(case, path).inputs(processor) for case, path, _ in rows]
        ids = [
            torch.cat([row["input_ids"][0], torch.randint(5, 200, (n,))])
            for row, (*_, n) in zip(inputs, rows, strict=True)
        ]
        names = ("pixel_values", "bert_input_ids", "bert_attention_mask", "input_features")
        batch = {name: torch.cat([row[name] for row in inputs]) for name in names}
        positions = torch.cat([torch.arange(len(row)) for row in ids])
        return {**batch, "input_ids": torch.cat(ids)[None], "position_ids": positions[None]}

    groups = [("landscape", "train", 4), ("landscape", "train", 7), ("square", "infer", 5), ("square", "infer", 0)]
    return packed(*groups), packed(("square", "infer", 3))


def answers_loss(model, batch):
    output = model(**batch, use_cache=False, temperature=0.8)
    return (output.log_probs.sin() + output.entropy).sum() / 100


def group_worker(rank, directory, init_file, out):
    from verl.utils.fsdp_utils import _select_fsdp2_wrap_targets

    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    processor = AutoProcessor.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="sdpa").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
    for module in [*_select_fsdp2_wrap_targets(model, model._no_split_modules), model]:
        fully_shard(module, mesh=mesh)
    answers_loss(model, group_batches(processor)[rank]).backward()
    gradients = {n: p.grad.full_tensor() for n, p in model.named_parameters() if p.grad is not None}
    if rank == 0:
        save_file(gradients, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_with_and_without_shared_prompts_have_the_plain_gradients(converted, tmp_path, monkeypatch):
    pytest.importorskip("verl")
    out = tmp_path / "gradients.safetensors"
    mp.spawn(group_worker, (str(converted), str(tmp_path / "init"), str(out)), nprocs=2)

    monkeypatch.setenv("VERL_OMNI_SHARING", "0")
    model = AutoModelForCausalLM.from_pretrained(converted).train()
    for batch in group_batches(AutoProcessor.from_pretrained(converted)):
        (answers_loss(model, batch) / 2).backward()
    found = load_file(out)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)
