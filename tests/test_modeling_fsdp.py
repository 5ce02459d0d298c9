"""Two FSDP2 ranks, wrapped as verl wraps them, of which one has a text alone: nothing hangs, gradients agree."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from originals import Golden
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


def sharded(model):
    """As verl wraps it."""
    from verl.utils.fsdp_utils import _select_fsdp2_wrap_targets

    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
    for module in [*_select_fsdp2_wrap_targets(model, model._no_split_modules), model]:
        fully_shard(module, mesh=mesh)
    return model


def write_gradients(model, rank, out):
    gradients = {n: p.grad.full_tensor() for n, p in model.named_parameters() if p.grad is not None}
    if rank == 0:
        save_file(gradients, out)


def worker(rank, folder, models):
    """Both ranks' processes, which take seconds to start, do all cases one after another."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'init'}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for case, (tied, freeze_bert) in CASES.items():
        processor, model = AutoProcessor.from_pretrained(models[tied]), sharded(load(models[tied], freeze_bert))
        batch = batches(processor)[rank]
        with torch.no_grad():  # as verl computes log-probabilities
            loss_of(model.eval(), batch)
        loss_of(model.train(), batch).backward()
        write_gradients(model, rank, folder / f"{case}.safetensors")
    model = AutoModelForCausalLM.from_pretrained(models[True], attn_implementation="sdpa").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    answers_loss(sharded(model), group_batches(AutoProcessor.from_pretrained(models[True]))[rank]).backward()
    write_gradients(model, rank, folder / "groups.safetensors")
    dist.barrier()
    dist.destroy_process_group()


CASES = {"tied": (True, False), "untied": (False, False), "BERT frozen": (False, True)}


@pytest.fixture(scope="module")
def models(converted, tmp_path_factory):
    """The model with tied embeddings, and without: verl then shards all of them by themselves, the towers' too."""
    model, processor = AutoModelForCausalLM.from_pretrained(converted), AutoProcessor.from_pretrained(converted)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    model.config.tie_word_embeddings = False
    untied = tmp_path_factory.mktemp("untied")
    model.save_pretrained(untied)
    processor.save_pretrained(untied)
    return {True: converted, False: untied}


@pytest.fixture(scope="module")
def gradients(models, tmp_path_factory):
    """The folder with the two ranks' gradients of each case."""
    pytest.importorskip("verl")
    folder = tmp_path_factory.mktemp("gradients")
    mp.spawn(worker, (folder, models), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_ranks_with_and_without_media(models, gradients, case):
    tied, freeze_bert = CASES[case]
    model = load(models[tied], freeze_bert).train()
    for batch in batches(AutoProcessor.from_pretrained(models[tied])):
        (loss_of(model, batch) / 2).backward()
    found = load_file(gradients / f"{case}.safetensors")
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


@pytest.mark.slow
def test_ranks_with_and_without_shared_prompts_have_the_plain_gradients(converted, gradients, monkeypatch):
    monkeypatch.setenv("VERL_OMNI_SHARING", "0")
    model = AutoModelForCausalLM.from_pretrained(converted).train()
    for batch in group_batches(AutoProcessor.from_pretrained(converted)):
        (answers_loss(model, batch) / 2).backward()
    found = load_file(gradients / "groups.safetensors")
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)
