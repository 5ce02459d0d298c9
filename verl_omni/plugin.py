"""Front door (being written)."""


def register_vllm() -> None:
    pass
