"""vLLM as the GPU recipes run it: bfloat16, CUDA graphs, sleep, weights by CUDA IPC. On a CPU: what of it there is."""

import pytest
import torch
from originals import HARDWARE
from test_vllm import CASES, Engine, environment, update_weights  # noqa: F401  (a fixture)

pytestmark = pytest.mark.slow
SETTINGS = {
    "cpu": {},
    "cuda": {"enforce_eager": False, "enable_sleep_mode": True, "gpu_memory_utilization": 0.5},
}


@pytest.fixture(scope="module", params=HARDWARE)
def hardware(request):
    return request.param


@pytest.fixture(scope="module")
def engine(hardware, environment, converted):  # noqa: F811
    engine = Engine(
        converted,
        torch.bfloat16,
        worker_extension_cls="verl.workers.rollout.vllm_rollout.utils.vLLMColocateWorkerExtension",
        **SETTINGS[hardware],
    )
    yield engine
    engine.llm.llm_engine.engine_core.shutdown()


def test_log_probs_in_bfloat16(hardware, engine, record_property):
    """On a GPU by the CUDA graphs that the recipe captures."""
    requests = [engine.request(*case) for case in CASES]
    errors = engine.errors(requests, engine.generate([request.expanded() for request in requests]))
    record_property("vLLM - transformers, bfloat16 log-probs, max", float(errors.max()))
    record_property("vLLM - transformers, bfloat16 log-probs, mean", float(errors.mean()))
    assert errors.max() <= 0.15 and errors.mean() <= 0.02
    if hardware == "cuda":
        assert engine.llm.llm_engine.vllm_config.compilation_config.cudagraph_mode.name != "NONE"


def forget_weights(model):
    """What is left of a model after vLLM's sleep at level 2: buffers alone, which vLLM keeps."""
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))


def test_a_weight_update_restores_a_model_that_slept(hardware, engine, record_property):
    """As verl does between steps: the model sleeps, its weights come by CUDA IPC, then its cache. Imitated on a CPU."""
    request = engine.request("landscape.mp4")
    if hardware == "cuda":
        engine.llm.sleep(level=2)
        engine.llm.wake_up(tags=["weights"])
    else:
        engine.llm.apply_model(forget_weights)
    update_weights(engine, engine.model.to(hardware), use_shm=hardware == "cpu")
    if hardware == "cuda":
        engine.llm.wake_up(tags=["kv_cache"])
    engine.model.to("cpu")
    errors = engine.errors([request], engine.generate([request.expanded()]))
    record_property("after sleep, wake and weight update, bfloat16 log-probs, max", float(errors.max()))
    assert errors.max() <= 0.15
