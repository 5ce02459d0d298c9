"""The tests' order and fixtures. It imports little: xdist's first process reads it before it starts the others."""

import gc
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

os.environ.setdefault("VERL_OMNI_MEDIA_CACHE", "0")  # tests that are not about it decode, and leave nothing at home
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for GPUs must not initialise the driver
gc.disable()  # until the tests are collected: what they import is millions of objects that stay
# With xdist a file's tests run in one process, which has its fixtures, and so do the files of a line here: one training
# by GRPO (10 GB) and one engine of vLLM are alive at once, for which 24 GB suffice.
ONE_AT_A_TIME = (
    ("test_grpo", "test_qwen2_5_omni_grpo"),
    ("test_vllm", "test_qwen2_5_omni_vllm", "test_gpu", "test_answering", "test_infer", "test_explanation"),
)


def group_of(file: str) -> tuple[int, str]:
    """What runs in one process, the longest first."""
    order = next((place for place, files in enumerate(ONE_AT_A_TIME) if file in files), len(ONE_AT_A_TIME))
    return order, "" if order < len(ONE_AT_A_TIME) else file


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # a worker of xdist's; otherwise the order of the files
        slow = {item.path.stem for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (group_of(item.path.stem)[0], item.path.stem not in slow))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if hasattr(item.config, "workerinput") and group_of(item.path.stem)[0]:
        os.setpriority(os.PRIO_PROCESS, 0, 8)  # beside the trainings, which take longest


@pytest.hookimpl(optionalhook=True)  # without xdist, one after another
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return str(group_of(Path(nodeid.split("::")[0]).stem))

    return ByGroup(config, log)


@pytest.fixture(scope="session", autouse=True)
def each_yaml_read_once() -> Iterator[None]:
    """Hydra reads verl's 40 files anew whenever it composes, which is a third of the time that a composition takes."""
    from omegaconf import OmegaConf

    read, known = OmegaConf.load, {}

    def load(file: object) -> object:
        if not hasattr(file, "seek"):
            return read(file)
        text = file.read()
        if text not in known:
            file.seek(0)
            known[text] = pickle.dumps(read(file))
        return pickle.loads(known[text])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", staticmethod(load))
        yield


@pytest.fixture(scope="session", autouse=True)
def configurations_are_not_printed() -> Iterator[None]:
    """transformers prints a nested configuration for each type that its field might have and has not, to no one."""
    from transformers import PreTrainedConfig

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedConfig, "__repr__", object.__repr__)
        yield


@pytest.fixture(scope="session", autouse=True)
def decoders_stay() -> Iterator[dict[str, Callable]]:
    """A child that decodes takes 0.3 s of CPU time to start: the next to ask in this environment gets those at rest."""
    from verl_omni.media.child import Children

    start, stop, idle, last = Children.__init__, Children.close, SimpleQueue(), None

    def close() -> None:
        while not idle.empty():
            idle.get().close()

    def init(self: Children) -> None:
        nonlocal last
        start(self)
        here = os.getcwd(), os.environ | {"PYTEST_CURRENT_TEST": ""}
        if here != last:
            close()
        self.idle, last = idle, here

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Children, "__init__", init)
        patch.setattr(Children, "close", lambda self: None)
        yield {"__init__": start, "close": stop}
    close()


@pytest.fixture
def own_decoders(decoders_stay, monkeypatch) -> None:
    """Children as they are outside the tests, for tests of themselves."""
    from verl_omni.media.child import Children

    for name, method in decoders_stay.items():
        monkeypatch.setattr(Children, name, method)


@pytest.fixture(scope="session")
def converted(tmp_path_factory) -> Path:
    """The original's tiny checkpoint as a self-contained directory."""
    from originals import HUMANOMNI, TOWERS

    import verl_omni.models  # noqa: F401
    from verl_omni.models.humanomni.conversion import convert

    return convert(HUMANOMNI / "ckpt_no_towers", tmp_path_factory.mktemp("converted"), **TOWERS)


@pytest.fixture(scope="session")
def taught(tmp_path_factory):
    """A tiny model that knows some demo clips by heart (``taught_model.Taught``); for slow tests."""
    from taught_model import build_taught

    return build_taught(tmp_path_factory.mktemp("taught"))
