"""What the rollouts of one prompt cost, in verl's agent loop, on the way to its trainer, and in vLLM."""

import asyncio
import os
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from omegaconf import OmegaConf
from transformers import AutoProcessor

from verl_omni.evaluation.answering import Settings, start_engine
from verl_omni.media import cache
from verl_omni.models.humanomni.processing import HumanOmniProcessor
from verl_omni.models.humanomni.towers import HumanOmniTowers
from verl_omni.prompts import instruction

from . import ROLLOUTS, Figures, counted, plain_or_shared

PASSES = 3  # log-probabilities, reference, update


def messages_about(clip: Path) -> list[dict]:
    media = [{"type": kind, kind: str(clip)} for kind in ("video", "audio")]
    return [{"role": "user", "content": [*media, {"type": "text", "text": instruction()}]}]


async def roll_out(
    clip: Path, processor: HumanOmniProcessor, rollouts: int = ROLLOUTS
) -> list[dict[str, torch.Tensor]]:
    """What verl's agent-loop worker does with the media of a prompt's rollouts, at once; no text is generated.

    Returns:
        The rollouts' ``multi_modal_inputs``.
    """
    from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, AgentLoopWorker
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    from verl_omni.data.dataset import OmniRLHFDataset, fill_in_frames

    builder = create_continuous_token_builder(processor.tokenizer, processor=processor)
    worker = SimpleNamespace(processor=processor, tokenizer=processor.tokenizer)
    worker._get_mm_processor_kwargs = lambda audios: {"sampling_rate": 16000}
    messages = messages_about(clip)
    config = OmegaConf.create()
    fill_in_frames(config, processor)

    async def one() -> dict[str, torch.Tensor]:
        _, videos, audios = await OmniRLHFDataset.process_multi_modal_info(messages, 16, config)
        ids = await asyncio.get_running_loop().run_in_executor(
            None, lambda: builder.build_initial_tokens(messages, videos=videos, audios=audios)
        )
        output = AgentLoopOutput(
            prompt_ids=ids, response_ids=[], response_mask=[], metrics={},
            multi_modal_data={"videos": videos, "audios": audios},
        )  # fmt: skip
        for _ in ("for the reward", "for the row"):
            inputs = AgentLoopWorker._compute_multi_modal_inputs(worker, output, torch.tensor(ids))
        return inputs

    return await asyncio.gather(*(one() for _ in range(rollouts)))


def measure_prompt(clip: Path, processor: HumanOmniProcessor) -> Figures:
    """Decodes, processor runs, seconds and bytes of a prompt with 8 rollouts, in the agent-loop worker."""
    results: Figures = {}
    for which in ("plain", "now"):
        counts: Counter = Counter()
        with (
            plain_or_shared(which == "plain"),
            counted(counts, cache, "read_video", "decodes a prompt"),  # plain
            counted(counts, cache, "read_frames", "decodes a prompt"),
            counted(counts, HumanOmniProcessor, "_process_frames", "runs over a prompt's media"),
        ):
            start = time.perf_counter()
            rollouts = asyncio.run(roll_out(clip, processor))
            seconds = time.perf_counter() - start
            moved = asyncio.run(bytes_moved(rollouts))
        figures = {
            **counts,
            "agent loop's media, s a prompt": seconds,
            "MB through TransferQueue a rollout": moved / ROLLOUTS / 1e6,
        }
        for name, value in figures.items():
            results.setdefault(name, {})[which] = value
    return results


async def bytes_moved(rollouts: list[dict[str, torch.Tensor]]) -> int:
    """Encoded bytes of media that go to TransferQueue and from it to one trainer process in a step's three passes."""
    from transfer_queue.utils.serial_utils import MsgpackEncoder
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    from verl_omni.adjustments.verl_clips_once import FETCHED, store_clips_once

    FETCHED.clear()
    rows: dict[tuple[str, str], object] = {}
    moved = 0

    def count(inputs: object) -> object:
        nonlocal moved
        moved += sum(memoryview(part).nbytes for part in MsgpackEncoder().encode(inputs))
        return inputs

    async def put(keys, partition_id, fields, **_) -> None:
        for key, inputs in zip(keys, fields.get("multi_modal_inputs").tolist(), strict=True):
            rows[partition_id, key] = count(inputs)

    async def get(keys, partition_id):
        return list_of_dict_to_tensordict([{"multi_modal_inputs": count(rows[partition_id, key])} for key in keys])

    queue = SimpleNamespace(async_kv_batch_put=put, async_kv_batch_get=get, kv_clear=None)
    utils = SimpleNamespace(tq=queue, _async_meta_to_realdata=lambda keys: get(keys, "train"))
    store_clips_once(utils)
    keys = [f"uid_{number}_0" for number in range(len(rollouts))]
    for key, inputs in zip(keys, rollouts, strict=True):
        row = list_of_dict_to_tensordict([{"multi_modal_inputs": inputs}])
        await utils.tq.async_kv_batch_put(keys=[key], partition_id="train", fields=row)
    for _ in range(PASSES):
        await utils._async_meta_to_realdata(keys)
    return moved


def measure_vllm(clip: Path, model: Path) -> Figures:
    """Processor runs and encoder passes of a real engine that gets a prompt's rollouts as verl sends them, at once."""
    from vllm import SamplingParams

    processor = AutoProcessor.from_pretrained(model)
    ids = processor.apply_chat_template(messages_about(clip), tokenize=True, return_dict=True)["input_ids"][0]
    results: Figures = {}
    settings = Settings(max_model_len=512, dtype="float32")
    with patch.dict(os.environ, VLLM_ENABLE_V1_MULTIPROCESSING="0"):  # or the counts would be another process'
        llm = start_engine(model, settings, {"enforce_eager": True, "max_num_seqs": ROLLOUTS})
    for which in ("plain", "now"):
        counts: Counter = Counter()
        llm.reset_prefix_cache()
        llm.reset_mm_cache()
        llm.llm_engine.reset_encoder_cache()
        with (
            plain_or_shared(which == "plain"),
            counted(counts, HumanOmniProcessor, "_process_frames", "processor runs a prompt"),
            counted(counts, HumanOmniTowers, "encode_video", "encoder passes a prompt"),
        ):
            prompts = [
                {
                    "prompt_token_ids": list(ids),
                    "multi_modal_data": {"video": [cache.read_video_once(clip, 8)],
                                         "audio": [(cache.read_audio_once(clip), 16000)]},
                }
                for _ in range(ROLLOUTS)
            ]  # fmt: skip
            llm.generate(prompts, SamplingParams(max_tokens=4, temperature=1.0), use_tqdm=False)
        for name, value in counts.items():
            results.setdefault(name, {})[which] = value
    llm.llm_engine.engine_core.shutdown()
    return results
