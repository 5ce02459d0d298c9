"""A prompt's rollouts go to one vLLM replica: verl's agent loop, client and load balancer, with replicas that count."""

import asyncio
from collections import defaultdict

import pytest
from conftest import CASES
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from transformers import AutoProcessor, AutoTokenizer

import verl_omni.plugin  # noqa: F401  (registers `+recipe=` with Hydra)


def replica_class() -> type:
    """Local, so that Ray sends it to workers that do not know this file."""

    class Replica:
        """Answers at once, and counts the requests of each clip (they differ in the number of their samples)."""

        def __init__(self):
            self.clips = defaultdict(int)

        async def generate(self, prompt_ids, audio_data, **request):
            from verl.workers.rollout.replica import TokenOutput

            self.clips[len(audio_data[0])] += 1
            await asyncio.sleep(0.5)  # all requests are in flight at once
            return TokenOutput(token_ids=[5, 6], log_probs=[0.0, 0.0], extra_fields={"global_steps": 0})

        def counts(self):
            return dict(self.clips)

    return Replica


@pytest.fixture(scope="module")
def config():
    GlobalHydra.instance().clear()
    with initialize_config_module("verl.trainer.config", version_base=None):
        yield compose(
            "ppo_trainer", overrides=["+recipe=r1omni_cpu", "data.max_prompt_length=512", "+data.num_frames=8"]
        )


def roll_out(agent_name: str, config, directory, n: int = 8) -> list[dict[int, int]]:
    """n rollouts of two clips; the requests of each clip, replica by replica."""
    import hydra
    import ray
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap, _agent_loop_registry
    from verl.workers.rollout.llm_server import LLMServerClient
    from verl.workers.rollout.router import get_router_handle

    from verl_omni.data.dataset import OmniRLHFDataset

    handles = {str(index): ray.remote(replica_class()).remote() for index in range(2)}
    client = LLMServerClient(config, get_router_handle(handles))
    parts = {
        "trainer_config": DictConfigWrap(config), "data_config": DictConfigWrap(config.data), "server_manager": client,
        "tokenizer": AutoTokenizer.from_pretrained(directory), "processor": AutoProcessor.from_pretrained(directory),
        "dataset_cls": OmniRLHFDataset, "hf_model_type": "HumanOmni_qwen2", "tools": None,
    }  # fmt: skip

    def rollout(clip: str):
        media = [{"type": kind, kind: str(CASES[clip])} for kind in ("video", "audio")]
        prompt = [{"role": "user", "content": [*media, {"type": "text", "text": "Who?"}]}]
        loop = hydra.utils.instantiate(_agent_loop_registry[agent_name], **parts)
        return loop.run({}, uid=clip, raw_prompt=prompt, session_id=0)

    async def all_at_once():
        return await asyncio.gather(*(rollout(clip) for clip in ("landscape", "portrait") for _ in range(n)))

    outputs = asyncio.run(all_at_once())
    assert [output.response_ids for output in outputs] == [[5, 6]] * 2 * n
    return ray.get([handle.counts.remote() for handle in handles.values()])


@pytest.mark.slow
def test_a_prompts_rollouts_go_to_one_of_two_replicas(config, converted):
    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    try:
        spread = roll_out("single_turn_agent", config, converted)
        together = roll_out("one_replica", config, converted)
    finally:
        ray.shutdown()
    assert max(len(counts) for counts in spread) == 2  # what verl does by itself: a clip is encoded by both
    assert sorted(map(sorted, (counts.values() for counts in together))) == [[8], [8]]
