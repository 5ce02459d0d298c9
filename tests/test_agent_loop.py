"""A prompt's rollouts on one vLLM replica: by verl's worker, agent loop, client and balancer, without Ray and vLLM."""

import asyncio
import json
from collections import Counter
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import DictConfig
from transformers import AutoProcessor
from verl.experimental.agent_loop import AgentLoopWorker
from verl.trainer.ppo.utils import create_rl_dataset
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.router import GlobalRequestLoadBalancer

import verl_omni.models  # noqa: F401  (registers the processor)
from verl_omni.models.humanomni.tiny import build_tiny
from verl_omni.recipe import composed

CLIP = str(Path(__file__).parent / "golden/clips/landscape.mp4")


class Remote:
    """Ray's syntax around an object of this process: ``handle.method.remote(...)`` is awaited, or forgotten."""

    def __init__(self, target: object):
        self.target = target

    def __getattr__(self, name: str) -> SimpleNamespace:
        def remote(*args, **kwargs) -> asyncio.Future:
            result = getattr(self.target, name)(*args, **kwargs)
            return asyncio.ensure_future(result if asyncio.iscoroutine(result) else asyncio.sleep(0, result))

        return SimpleNamespace(remote=remote)


class Replica:
    """In place of a vLLM server: notes requests, and answers when it is told to, so that all are in flight at once."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.prompts: Counter[tuple[int, ...]] = Counter()
        self.answer = asyncio.Event()

    async def generate(self, request_id: str, prompt_ids: list[int], video_data: list, **_: object) -> TokenOutput:
        assert len(video_data) == 1
        self.requests.append(request_id)
        self.prompts[tuple(prompt_ids)] += 1
        await self.answer.wait()
        return TokenOutput(token_ids=[1])


class Worker(AgentLoopWorker):
    """verl's, up to what the agent loop returns."""

    async def _agent_loop_postprocess(self, output, validate, **row):
        return output


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[DictConfig, list[dict]]:
    """A recipe with a tiny model, and verl's rows of eight questions about a clip."""
    folder = tmp_path_factory.mktemp("agent_loop")
    model = build_tiny(folder / "model")
    rows = [
        {
            "data_source": "demo",
            "prompt": [{"role": "user", "content": f"<video><audio>Who smiles, {number}?"}],
            "reward_model": {"style": "rule", "ground_truth": "happy"},
            "videos": [CLIP],
            "audios": [CLIP],
        }
        for number in range(8)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    config = composed("r1omni_cpu", [f"actor_rollout_ref.model.path={model}"])
    processor = AutoProcessor.from_pretrained(model)
    dataset = create_rl_dataset(str(folder / "rows.json"), config.data, processor.tokenizer, processor)
    return config, [dataset[number] | {"uid": f"uid-{number}"} for number in range(8)]


def roll_out(config: DictConfig, rows: list[dict], rollouts: int) -> list[Replica]:
    """What two replicas get of ``rollouts`` of each row, started as verl's worker does."""
    name = config.actor_rollout_ref.rollout.agent.default_agent_loop
    trajectory = {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": False}

    async def run() -> list[Replica]:
        replicas = [Replica(), Replica()]
        balancer = GlobalRequestLoadBalancer({str(number): Remote(replica) for number, replica in enumerate(replicas)})
        worker = Worker(config, LLMServerClient(config, Remote(balancer)))
        tasks = [
            asyncio.ensure_future(
                worker._run_agent_loop({}, trajectory, agent_name=name, trace=False, priority=number, **row)
            )
            for number, row in enumerate(row for row in rows for _ in range(rollouts))
        ]
        while sum(len(replica.requests) for replica in replicas) < len(tasks):
            await asyncio.sleep(0.01)
            for task in tasks:
                assert not task.done(), task.result()
        for replica in replicas:
            replica.answer.set()
        await asyncio.gather(*tasks)
        await asyncio.sleep(0)
        assert balancer.get_total_inflight() == 0
        return replicas

    return asyncio.run(run())


def test_a_prompts_rollouts_go_to_one_replica_and_prompts_to_the_one_with_less_to_do(study):
    config, rows = study
    first, second = roll_out(config, rows, 4)
    assert sorted([*first.prompts.values(), *second.prompts.values()]) == [4] * 8
    assert min(len(first.prompts), len(second.prompts)) >= 2


def test_vllm_gets_an_id_for_each_rollout(study):
    config, rows = study
    first, second = roll_out(config, rows[:2], 4)
    assert len({*first.requests, *second.requests}) == 8


def test_prompts_of_one_rollout_spread_evenly_as_in_validation(study):
    assert [len(replica.requests) for replica in roll_out(*study, 1)] == [4, 4]


def test_without_sharing_rollouts_spread_as_verl_has_them(study, monkeypatch):
    config, rows = study
    monkeypatch.setenv("VERL_OMNI_SHARING", "0")
    assert [len(replica.requests) for replica in roll_out(config, rows[:1], 8)] == [4, 4]


def test_ids_stay_the_loops_where_vllm_gets_them(study):
    """verl's ``full_determinism``: it numbers the rollouts of a batch."""
    config, rows = study
    config = deepcopy(config)
    config.actor_rollout_ref.rollout.full_determinism = True
    first, second = roll_out(config, rows[:1], 4)
    assert sorted(first.requests + second.requests) == [f"det-{number}" for number in range(4)]
