"""An agent loop for prompts with media: the rollouts of a prompt go to one vLLM replica."""

from types import ModuleType, SimpleNamespace
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop


class OneReplicaAgentLoop(SingleTurnAgentLoop):
    """verl's single turn, with the prompt's uid as the key by which verl's load balancer chooses a replica.

    verl makes up a key for each rollout. Then a prompt's n rollouts are spread over the replicas, and each replica
    processes and encodes the clip again.
    """

    async def run(self, sampling_params: dict[str, Any], uid: str, **kwargs: Any) -> AgentLoopOutput:
        client = self.server_manager
        if not self.rollout_config.full_determinism:  # in which the key is the request's own name in vLLM
            self.server_manager = SimpleNamespace(
                generate=lambda request_id, **request: client.generate(uid, **request)
            )
        return await super().run(sampling_params, uid=uid, **kwargs)


def register(single_turn_agent_loop: ModuleType) -> None:
    """Make ``actor_rollout_ref.rollout.agent.default_agent_loop=one_replica`` known to verl.

    Args:
        single_turn_agent_loop: ``verl.experimental.agent_loop.single_turn_agent_loop``.
    """
    single_turn_agent_loop.register("one_replica")(OneReplicaAgentLoop)
