"""verl and vLLM on a machine without an accelerator: real FSDP2, real vLLM rollouts, gloo instead of NCCL.

verl 0.9.1 knows CUDA, ROCm and NPU platforms; the CPU is one more entry in its registries. What its registries do not
reach is adjusted by ``verl_omni.adjustments``.
"""

import importlib.metadata
import os
from collections.abc import Callable
from contextlib import nullcontext
from resource import RUSAGE_SELF, getrusage
from types import ModuleType
from typing import Any

import psutil
import torch


def is_cpu_only() -> bool:
    """Whether this machine trains on its CPU: no accelerator in sight, and vLLM, if installed, is a CPU build.

    A GPU cluster's head node has no accelerator either; its vLLM is a GPU build, and verl keeps its own choice there.
    """
    version = next((vllm.version for vllm in importlib.metadata.distributions(name="vllm")), "")
    if version and "+cpu" not in version:
        return False  # without a look at the driver: vLLM forks its engine, which then could not use it
    return not torch.accelerator.is_available()


def default_dtype() -> str:
    """Precision of the commands' models: float32 on a CPU, elsewhere vLLM's and transformers' ``auto``.

    A CPU without bfloat16 instructions takes 50 times as long in bfloat16 (1.3 against 68 GFLOP/s in a matmul on two
    AVX2 cores); one that has them is not slower in float32 at the sizes that a CPU trains.
    """
    return "float32" if is_cpu_only() else "auto"


def always(answer: object) -> Callable[..., Any]:
    """A function that gives ``answer``, whatever it is called with."""
    return lambda *args, **kwargs: answer


nothing = always(None)  # what only an accelerator needs: an allocator's cache, IPC handles, streams, a profiler


def device_module() -> ModuleType:
    """``torch.cpu`` with the functions verl calls on ``torch.cuda``; memory is this process' resident set, in bytes."""
    process = psutil.Process()
    module: Any = ModuleType("verl_omni.platforms.cpu.device")
    module.__dict__.update({name: value for name, value in vars(torch.cpu).items() if not name.startswith("__")})
    module.mem_get_info = lambda device=None: (psutil.virtual_memory().available, psutil.virtual_memory().total)
    module.get_device_name = always("cpu")
    module.memory_allocated = module.memory_reserved = lambda device=None: process.memory_info().rss
    module.max_memory_allocated = module.max_memory_reserved = lambda device=None: (
        getrusage(RUSAGE_SELF).ru_maxrss * 1024
    )
    module.manual_seed = module.manual_seed_all = torch.manual_seed
    module.get_rng_state, module.set_rng_state = torch.get_rng_state, torch.set_rng_state
    module.empty_cache = module.ipc_collect = module.reset_peak_memory_stats = nothing
    return module


def register_platform(platform_manager: ModuleType) -> None:
    """Add platform ``cpu`` to verl's PlatformRegistry, after its own: they are asked first."""
    from verl.plugin.platform.platform_base import PlatformBase

    @platform_manager.PlatformRegistry.register(platform="cpu")
    class PlatformCPU(PlatformBase):
        """Logical devices over one CPU: Ray hands out as many "GPUs" as the recipe declares."""

        device_name = "cpu"
        vendor_name = "cpu"
        device_module = device_module()
        set_device = synchronize = set_allocator_settings = empty_cache = nothing
        profiler_start = profiler_stop = cudart = nothing
        manual_seed = manual_seed_all = staticmethod(torch.manual_seed)
        is_available = always(True)
        current_device = always(torch.device("cpu"))  # an index would mean CUDA to `Tensor.to`
        device_count = always(1)
        get_device_capability = always((None, None))
        communication_backend_name = always("gloo")
        ray_resource_name = always("GPU")
        visible_devices_envvar = always("CUDA_VISIBLE_DEVICES")  # what Ray sets for its resource "GPU"
        ray_noset_envvars = always(["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"])
        is_ipc_supported = always(False)  # weights go to vLLM through shared memory
        nvtx_range = always(nullcontext())

        def is_platform_available(self, use_smi_check: bool = False) -> bool:
            return is_cpu_only()

        def rollout_env_vars(self) -> dict[str, str]:
            # GiB of key-value cache per replica; by default vLLM takes a share of the machine, which others need.
            return {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")}


def keep_compiled_kernels_apart(cache_dir_utils: ModuleType) -> None:
    """Give kernels a cache of their own where ``ATEN_CPU_CAPABILITY`` asks for fewer instructions than the CPU has.

    torch 2.13's cache does not know the difference: source that was written for vectors of 8 floats is compiled again
    for vectors of 16, and vLLM's compiled sampler then writes beyond its output ("free(): invalid next size").
    """
    capability, folder = os.environ.get("ATEN_CPU_CAPABILITY"), cache_dir_utils.default_cache_dir()
    if capability and os.environ.get("TORCHINDUCTOR_CACHE_DIR", folder) == folder:  # torch itself sets it, once asked
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}_{capability}"


def use_one_thread(constants_ppo: ModuleType) -> None:
    """Let each process of a training compute with one thread on a CPU, unless ``OMP_NUM_THREADS`` says otherwise.

    Processes with a thread per core each, which wait for them in a loop, take many times as long as soon as one more
    runs. The driver's environment is that of Ray's workers; verl's trainers alone import ``constants_ppo``.
    """
    if is_cpu_only() and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
