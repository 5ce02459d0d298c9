"""verl's single-turn agent loop, with a prompt's rollouts on one vLLM replica, which then encodes their clip once.

actor_rollout_ref.rollout.agent.default_agent_loop=one_replica_agent
"""

from types import SimpleNamespace
from typing import Any

from verl.experimental.agent_loop import AgentLoopOutput, SingleTurnAgentLoop
from verl.experimental.agent_loop.agent_loop import register

from verl_omni.media.cache import enabled


@register("one_replica_agent")
class OneReplicaAgentLoop(SingleTurnAgentLoop):
    """verl's load balancer keeps requests of one id on one replica, the one with the least to do when the first comes.

    verl's own loop has an id for each rollout, here it is the prompt's; vLLM gets ids of verl's client.
    """

    server_manager: Any  # verl's class is unknown to mypy

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """verl's, of a row of its batch, with the ``uid`` that all rollouts of the prompt have."""
        # verl's `full_determinism` hands the loop's ids on to vLLM, where they must differ.
        if enabled() and not self.rollout_config.full_determinism:
            generate, uid = self.server_manager.generate, row["uid"]
            self.server_manager = SimpleNamespace(generate=lambda request_id, **inputs: generate(uid, **inputs))
        return await super().run(sampling_params, **row)
