"""verl's load balancer, which notes what it sends where; for test_grpo.py, by verl's ``router_config_path``."""

from pathlib import Path

from verl.workers.rollout.router import GlobalRequestLoadBalancer


class RecordedLoadBalancer(GlobalRequestLoadBalancer):
    """Appends a line ``request id, replica`` to the file ``record`` for each request."""

    def __init__(self, servers: dict[str, object], config: dict[str, str]):
        super().__init__(servers)
        self.record = Path(config["record"])

    def acquire_server(self, request_id: str) -> tuple[str, object]:
        server_id, server = super().acquire_server(request_id)
        with self.record.open("a") as record:
            record.write(f"{request_id} {server_id}\n")
        return server_id, server
