"""The front door: what ``import verl`` registers, and how it fails where it cannot. In real processes."""

import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from verl_omni import plugin
from verl_omni.adjustments import replaces, verl_log_probs_by_chunks, vllm_cpu_name
from verl_omni.platforms import cpu

ROOT = Path(__file__).parent.parent
needs_cpu = pytest.mark.skipif(not cpu.is_cpu_only(), reason="there is an accelerator")

REGISTERED = """
import os
del os.environ["OMP_NUM_THREADS"]
import json, sys, torch
before = torch.get_num_threads()
import verl
from importlib.metadata import version
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from transformers import AutoConfig
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
from verl.plugin.platform import get_platform
from verl.utils import hf_processor
from verl.utils.device import get_device_id, get_device_name
from verl.utils.flops_counter import FlopsCounter
from verl.workers.engine import EngineRegistry

config = AutoConfig.from_pretrained(sys.argv[1])
registered = {
    "platform": [type(get_platform()).__name__, get_device_name(), str(get_device_id())],
    "engine": EngineRegistry.get_engine_cls("language_model", "fsdp2").__name__,
    "reward manager": get_reward_manager_cls("accuracy_format").__module__,
    "processor": type(hf_processor(sys.argv[1])).__module__,
    "configuration": type(config).__name__,
    "flops": FlopsCounter(config).estimate_flops([100, 200], 1.0, images_seqlens=None)[0] > 0,
    "hydra": sorted(c.__name__ for kind in (ConfigSource, SearchPathPlugin) for c in Plugins.instance().discover(kind)
                    if c.__module__ == "verl_omni.recipe_source"),
}
imported = [torch.get_num_threads() == before, "OMP_NUM_THREADS" in os.environ]
import verl.trainer.constants_ppo
print(json.dumps([registered, [*imported, torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]]]))
"""
STARTED = """
import json, sys
import verl
from verl.plugin.platform import get_platform
print(json.dumps({"verl_omni": "verl_omni" in sys.modules, "platform": type(get_platform()).__name__}))
"""
MANAGER_FIRST = """
from verl_omni.rewards.manager import AccuracyFormatRewardManager
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
print(int(get_reward_manager_cls("accuracy_format") is AccuracyFormatRewardManager))
"""


def distribution(folder: Path, name: str, version: str) -> Path:
    """A directory for PYTHONPATH in which Python finds this distribution before an installed one of its name."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


def start(code: str, *arguments: str, path: Path | None = None, **environment: str) -> subprocess.Popen:
    python_path = os.pathsep.join([str(path or ""), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path, **environment}
    command = [sys.executable, "-W", "ignore", "-W", "default:verl_omni", "-c", code, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Ended:
    """What is left of a process: exit status, the JSON in the last line that it printed, errors."""

    def __init__(self, process: subprocess.Popen):
        output, self.errors = process.communicate(timeout=300)
        self.status = process.returncode
        self.printed = json.loads(output.splitlines()[-1]) if self.status == 0 else None


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> dict[str, subprocess.Popen]:
    """``import verl`` in fresh processes, all at once: each takes seconds of waiting for the disk."""
    from verl_omni.models.humanomni.tiny import build_tiny

    folder = tmp_path_factory.mktemp("distributions")
    both = distribution(distribution(folder / "b", "verl-omni", "0.3.0"), "vllm", version_of_vllm())
    return {
        "registered": start(REGISTERED, str(build_tiny(tmp_path_factory.mktemp("model")))),
        "old verl": start("import verl; print('{}')", path=distribution(folder / "a", "verl", "0.8.0")),
        "GPU build, other verl_omni": start(STARTED, path=both),
        "manager first": start(MANAGER_FIRST),
        "without plug-ins": start(STARTED, VERL_USE_EXTERNAL_PLUGINS="none"),
    }


@pytest.fixture(scope="module")
def ended(processes) -> dict[str, Ended]:
    return {name: Ended(process) for name, process in processes.items()}


def version_of_vllm() -> str:
    return plugin.SUPPORTED["vllm"].split(",")[0].removeprefix(">=") + ".0"


# ---- registration ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_cpu
def test_import_verl_registers_everything(ended):
    process = ended["registered"]
    assert process.status == 0, process.errors
    assert process.printed[0] == {
        "platform": ["PlatformCPU", "cpu", "cpu"],
        "engine": "FSDPEngineWithLMHead",
        "reward manager": "verl_omni.rewards.manager",
        "processor": "verl_omni.models.humanomni.processing",
        "configuration": "HumanOmniConfig",
        "flops": True,
        "hydra": ["RecipeSearchPath", "RecipeSource"],
    }


@pytest.mark.slow
def test_the_reward_manager_can_be_imported_before_verl(ended):
    process = ended["manager first"]
    assert process.printed == 1, process.errors


@pytest.mark.slow
def test_verl_alone_is_left_as_it_is_without_plugins(ended):
    process = ended["without plug-ins"]
    assert process.status == 0, process.errors
    assert not process.printed["verl_omni"] and process.printed["platform"] != "PlatformCPU"


def test_each_row_of_the_table_names_a_module_and_a_function_that_exist():
    for hook in plugin.HOOKS:
        if hook.module.startswith("vllm") and importlib.util.find_spec("vllm") is None:
            continue
        assert importlib.util.find_spec(hook.module), f"{hook.module} is gone"
        module, _, function = hook.function.partition(":")
        assert importlib.util.find_spec(module)
        assert not function or callable(getattr(importlib.import_module(module), function))
        assert hook.why


def test_registering_twice_installs_each_row_once_and_loads_nothing_of_verl_vllm_or_transformers():
    code = """
import json, sys
import wrapt
from unittest.mock import patch
with patch.object(wrapt, "register_post_import_hook", wraps=wrapt.register_post_import_hook) as installed:
    import verl_omni.plugin as plugin
    plugin.register()
counts = [installed.call_count, len(plugin.HOOKS), len({hook.function for hook in plugin.HOOKS})]
print(json.dumps([counts, sorted({"verl", "vllm", "transformers", "ray", "hydra"} & sys.modules.keys())]))
"""
    process = Ended(start(code))
    assert process.status == 0, process.errors
    assert process.printed == [[len(plugin.HOOKS)] * 3, []]


@pytest.mark.slow
@needs_cpu
def test_threads_are_limited_where_verl_trains_and_nowhere_else(ended):
    process = ended["registered"]
    assert process.status == 0, process.errors
    assert process.printed[1] == [True, False, 1, "1"]


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asking", plugin.ASKED_BY)
def test_an_unsupported_version_stops_a_run_that_asks_for_the_plug_in(asking, tmp_path):
    path = distribution(tmp_path, "vllm", "0.33.0")
    process = Ended(start("import verl_omni.plugin", f"data.x={asking}1", path=path))
    assert process.status == 1
    assert f"vllm 0.33.0 is installed, verl_omni supports vllm{plugin.SUPPORTED['vllm']}" in process.errors


@pytest.mark.slow
def test_an_unsupported_verl_is_warned_of_and_others_runs_go_on(ended):
    process = ended["old verl"]
    assert process.status == 0, process.errors
    assert f"verl 0.8.0 is installed, verl_omni supports verl{plugin.SUPPORTED['verl']}" in process.errors


@pytest.mark.slow
def test_the_other_distribution_of_this_name_is_warned_of(ended):
    process = ended["GPU build, other verl_omni"]
    assert process.status == 0, process.errors
    assert "the distributions verl-r1-omni and verl-omni both provide the package verl_omni" in process.errors


def test_vllm_serves_other_models_where_the_plug_in_cannot_register(tmp_path):
    """What vLLM does with an entry point: load it, call it."""
    code = """
import json
from importlib.metadata import entry_points
[entry] = entry_points(group="vllm.general_plugins", name="verl_omni")
entry.load()()
print(json.dumps("alive"))
"""
    process = Ended(start(code, path=distribution(tmp_path, "transformers", "4.57.0")))
    assert (process.status, process.printed) == (0, "alive"), process.errors
    assert "transformers 4.57.0 is installed" in process.errors


@pytest.mark.parametrize(
    ("name", "unsupported"),
    [("transformers", "4.57.0"), ("vllm", "0.33.0"), ("vllm-cpu", "0.23.1"), ("verl", "0.10.0")],
)
def test_each_unsupported_version_is_named(name, unsupported, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, vllm_cpu_name.VllmCpuFinder)])
    monkeypatch.syspath_prepend(distribution(tmp_path, name, unsupported))
    with pytest.raises(RuntimeError, match=f"{name} {unsupported} is installed, verl_omni supports {name}>="):
        plugin.check_versions()


def test_a_library_that_is_missing_is_named(tmp_path):
    (tmp_path / "wrapt.py").write_text("raise ModuleNotFoundError(\"No module named 'wrapt'\")")
    process = Ended(start("import verl_omni.plugin", "+recipe=r1omni", path=tmp_path))
    assert process.status == 1
    assert "verl_omni is not registered: No module named 'wrapt'" in process.errors


def test_stated_versions_agree():
    """The plug-in accepts what the package's metadata asks for, and what is installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    for name in ("verl", "transformers"):
        assert SpecifierSet(plugin.SUPPORTED[name]) == required[name]
        assert version(name) in required[name]
    assert plugin.SUPPORTED["vllm"] == plugin.SUPPORTED["vllm-cpu"]


# ---- platform --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_cpu_platform_leaves_a_gpu_build_of_vllm_alone(ended):
    """A GPU cluster's head node has no accelerator either."""
    process = ended["GPU build, other verl_omni"]
    assert process.status == 0, process.errors
    assert process.printed["verl_omni"] and process.printed["platform"] != "PlatformCPU"


@pytest.mark.parametrize(
    ("accelerator", "vllm", "chosen"),
    [
        (False, None, True),
        (False, "0.28.0+cpu", True),
        (False, "0.28.0", False),
        (True, None, False),
        (True, "0.28.0+cpu", False),
        (True, "0.28.0", False),
    ],
)
def test_cpu_is_chosen_only_without_an_accelerator_and_without_a_gpu_build(
    accelerator, vllm, chosen, tmp_path, monkeypatch
):
    monkeypatch.setattr(cpu.torch.accelerator, "is_available", lambda: accelerator)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, vllm_cpu_name.VllmCpuFinder)])
    if vllm:
        monkeypatch.syspath_prepend(distribution(tmp_path, "vllm", vllm))
    assert cpu.is_cpu_only() == chosen


def test_a_gpu_build_of_vllm_is_known_without_a_look_at_the_driver(tmp_path, monkeypatch):
    """torch's look would initialise it before vLLM forks its engine, which then could not."""

    def look():
        raise AssertionError("asked torch")

    monkeypatch.setattr(cpu.torch.accelerator, "is_available", look)
    monkeypatch.syspath_prepend(distribution(tmp_path, "vllm", version_of_vllm()))
    assert not cpu.is_cpu_only()


def test_two_adjustments_of_one_function_both_hold_each_once():
    theirs = ModuleType("theirs")
    theirs.answer = lambda text: f"their {text}"

    def loudly():
        @replaces(theirs, "answer")
        def louder(answer, text):
            return answer(text).upper()

    def twice():
        @replaces(theirs, "answer")
        def repeated(answer, text):
            return f"{answer(text)}, {answer(text)}"

    for adjust in (loudly, twice, loudly, twice):
        adjust()
    assert theirs.answer("word") == "THEIR WORD, THEIR WORD"


def test_packed_log_probs_go_by_chunks_on_an_accelerator_too(monkeypatch):
    """Without flash-attn, that is; with it, verl does not call this function."""
    calls = []
    monkeypatch.setattr(cpu.torch.accelerator, "is_available", lambda: True)
    of_each_row = ModuleType("torch_functional")
    of_each_row.logprobs_from_logits_v2 = lambda logits, labels: calls.append(logits.shape) or labels
    verl_log_probs_by_chunks.take_log_probs_of_many_tokens(of_each_row)
    labels = cpu.torch.arange(100)
    assert cpu.torch.equal(of_each_row.logprobs_from_logits_v2(cpu.torch.zeros(100, 16), labels), labels)
    assert calls == [(1, 100, 16)]


def test_a_distribution_really_named_vllm_wins_over_our_answer(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(distribution(tmp_path, "vllm", "0.27.1+cpu"))
    vllm_cpu_name.answer_for_vllm()
    assert version("vllm") == "0.27.1+cpu"


@needs_cpu
def test_the_cpu_build_answers_for_vllm():
    vllm_cpu_name.answer_for_vllm()
    assert version("vllm") == f"{version('vllm-cpu').removesuffix('+cpu')}+cpu"
    assert importlib.metadata.metadata("vllm")["Name"] == "vllm"


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "suffix"), [("avx2", "_avx2"), ("", "")])
def test_kernels_of_another_instruction_set_have_a_cache_of_their_own(capability, suffix):
    look = "import verl_omni.plugin; from torch._inductor.runtime.cache_dir_utils import cache_dir; print(cache_dir())"
    environment = {k: v for k, v in os.environ.items() if k not in ("ATEN_CPU_CAPABILITY", "TORCHINDUCTOR_CACHE_DIR")}
    environment |= {"ATEN_CPU_CAPABILITY": capability} if capability else {}
    look = "import torch._inductor.config; " + look
    done = subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True, text=True, check=True)
    folder = Path(done.stdout.split()[-1]).name
    assert folder.startswith("torchinductor_") and folder.endswith("_avx2") == bool(suffix)


PARENT = """
import multiprocessing, time

def engine():
    from verl_omni import plugin
    plugin.register_vllm()
    print("registered", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=engine, name="EngineCore").start()
    time.sleep(600)
"""


@pytest.mark.parametrize("asked", [True, False])
def test_a_run_that_asks_for_the_plug_in_is_marked_and_no_other(asked, monkeypatch):
    constants_ppo = SimpleNamespace(PPO_RAY_RUNTIME_ENV={"env_vars": {}})
    monkeypatch.setattr(sys, "argv", ["main_ppo.py", "+recipe=r1omni" if asked else "data.train_files=x"])
    plugin.mark_run(constants_ppo)
    assert constants_ppo.PPO_RAY_RUNTIME_ENV["env_vars"] == ({plugin.RUN: "1"} if asked else {})


def test_others_engines_are_not_watched(monkeypatch):
    monkeypatch.setattr(plugin.multiprocessing, "parent_process", multiprocessing.current_process)
    monkeypatch.setattr(multiprocessing.current_process(), "name", "EngineCore")
    started = []
    monkeypatch.setattr(plugin.threading, "Thread", lambda **_: started.append(1) or SimpleNamespace(start=list))
    monkeypatch.delenv(plugin.RUN, raising=False)
    plugin.end_with_parent()
    assert not started
    monkeypatch.setenv(plugin.RUN, "1")
    plugin.end_with_parent()
    assert started


@pytest.mark.slow
def test_vllms_engine_ends_when_its_server_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, "parent.py"],
        cwd=tmp_path,
        env={**os.environ, plugin.RUN: "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "registered\n" in parent.stdout  # vLLM logs to it, too
    children = psutil.Process(parent.pid).children(recursive=True)  # the engine, and Python's resource tracker
    assert len(children) == 2
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    for process in alive:
        process.kill()
    assert not alive
