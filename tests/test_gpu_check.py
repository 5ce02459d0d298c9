"""``make gpu-check``: its stages, figures and page. The whole of it takes minutes (docs/gpu.md)."""

import json
import sys
import time

import psutil
import pytest
import torch

import verl_omni.plugin  # noqa: F401  (registers `+recipe=` with Hydra)
from benchmarks import full_size, gpu_check
from benchmarks.gpu_check import STAGES, Check, CheckError, Stage
from verl_omni.corpora import demo
from verl_omni.models.humanomni.modeling import HumanOmniQwen2ForCausalLM
from verl_omni.recipe import composed
from verl_omni.report.curves import read_log


@pytest.fixture
def check(tmp_path):
    (tmp_path / "logs").mkdir()
    return Check(tmp_path, gpu=False, steps=2)


@pytest.mark.parametrize(
    ("gpu", "gib", "flash"),
    [
        *((True, 24, False), (True, 80, True), (False, 80, False)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(True, 24, True), (True, 80, False), (False, 24, True)]
        ),
    ],
)
def test_overrides_compose_with_the_shipped_recipes(check, gpu, gib, flash, monkeypatch):
    monkeypatch.setattr("benchmarks.trainer.find_spec", lambda name: flash or None)
    check.gpu, check.device = gpu, {"memory_gib": gib}
    sft, grpo = (composed(check.recipe(trainer), check.overrides(trainer)) for trainer in ("sft", "grpo"))
    actor = grpo.actor_rollout_ref
    assert {config.trainer.n_gpus_per_node for config in (sft, grpo)} == {1}
    assert {config.trainer.total_training_steps for config in (sft, grpo)} == {2}
    assert {sft.trainer.device, grpo.trainer.device} == ({"cuda"} if gpu else {"cpu"})
    assert actor.model.use_remove_padding == sft.model.use_remove_padding == (gpu and flash)
    assert actor.actor.fsdp_config.optimizer_offload == actor.ref.fsdp_config.param_offload == (gpu and gib < 40)
    if gpu and gib == 80:  # else as shipped
        assert (actor.actor.ppo_micro_batch_size_per_gpu, actor.rollout.n, grpo.data.train_batch_size) == (8, 8, 16)


def test_the_full_size_is_humanomnis():
    processor = full_size.full_size_processor()
    config = full_size.config_of(processor)
    with torch.device("meta"):
        model = HumanOmniQwen2ForCausalLM(config)
    parts = {"layers", "embed_tokens", "norm"}
    qwen = sum(p.numel() for name, p in model.named_parameters() if name.split(".")[1] in parts)
    assert qwen == 494_032_768  # Qwen2.5-0.5B's
    assert (processor.video_tokens(8), processor.audio_tokens) == (392, 500)
    assert (config.num_video_tokens, config.num_audio_tokens) == (392, 500)
    assert sorted(processor.tokenizer.get_vocab().values()) == list(range(config.vocab_size))
    assert len(processor.bert_tokenizer) < config.bert_config.vocab_size


@pytest.mark.slow
def test_clips_of_720p(tmp_path, monkeypatch):
    from verl_omni.data.files import read_rows
    from verl_omni.media import read_video

    monkeypatch.setattr(demo, "SECONDS", 1)
    monkeypatch.setattr(demo, "FPS", 4)
    rows = read_rows(full_size.build_720p(tmp_path, n_train=4, n_test=4, n_sft=4)["train"])
    assert read_video(rows[0]["videos"][0]).shape == (8, 720, 1280, 3)


def test_mfu_counts_the_language_models_operations():
    config = full_size.config_of(full_size.full_size_processor())
    linear = 24 * (3 * 896 * 4864 + 896 * (896 + 128 + 128 + 896)) + 2 * 151936 * 896
    attention = 24 * 896 * (1000**2 + 500**2)
    expected = (6 * linear * 1500 + 6 * attention) / 2.0 / 100e12
    assert full_size.mfu(config, [1000, 500], seconds=2.0, peak=100e12) == pytest.approx(expected)


def test_figures_of_a_training_leave_out_the_step_that_warms_up(check):
    steps = [
        {"timing_s/step": 50.0, "perf/max_memory_allocated_gb": 9.0, gpu_check.CORRELATION: 0.98},
        {"timing_s/step": 4.0, "perf/max_memory_allocated_gb": 12.0, gpu_check.CORRELATION: 0.999},
        {"timing_s/step": 6.0, "perf/max_memory_allocated_gb": 11.0, gpu_check.CORRELATION: 0.997},
    ]
    log = check.out / "grpo.jsonl"
    log.write_text("".join(json.dumps({"step": n, "data": data}) + "\n" for n, data in enumerate(steps, 1)))
    figures, parity = gpu_check.training_figures(read_log(log))
    assert figures == {"a step, s": 5.0, "memory allocated, GiB": 12.0}
    assert list(parity.values()) == [0.98]


@pytest.mark.slow
def test_figures_of_tests_are_those_that_pytest_recorded(check):
    (check.out / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(record_property): record_property('error, max', 0.25)\n"
        "def test_bad(): assert 1 == 2, 'kernels differ'\n"
        "def test_none(): pytest.skip('no GPU')\n"
    )
    stage, results = Stage("tests", log="logs/tests.log"), check.out / "tests.xml"
    with pytest.raises(CheckError, match="exit status 1"):
        check.run(stage, ["-m", "pytest", "-o", "junit_family=xunit1", f"--junitxml={results}", str(check.out)])
    figures, parity = gpu_check.test_figures(results)
    assert parity == {"error, max": 0.25}
    assert figures["passed"] == 1 and figures["skipped: test_none"] == "no GPU"
    assert "kernels differ" in figures["failure: test_bad"]


class TwoStages(Check):
    """One that fails, and one that leaves a process behind."""

    def sft(self, stage):
        self.run(stage, ["-c", "raise ValueError('<no> kernel image')"])

    def grpo(self, stage):
        child = "import os, time; os.setpgrp(); time.sleep(99)"
        code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid)"
        self.run(stage, ["-c", code])
        stage.figures["left"] = int((self.out / stage.log).read_text())
        stage.parity["correlation"] = 0.9999


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_stage_that_fails_is_on_the_page_and_the_next_one_runs(tmp_path):
    (tmp_path / "logs").mkdir()
    check = TwoStages(tmp_path, gpu=False, steps=2)
    for name in ("sft", "grpo"):
        check.attempt(name)
    assert [check.stages[name].outcome for name in ("sft", "grpo", "bench")] == ["failed", "ok", "not run"]
    assert check.failed and "ValueError: <no> kernel image" in check.stages["sft"].problem
    deadline = time.monotonic() + 10
    while alive(check.stages["grpo"].figures["left"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(check.stages["grpo"].figures["left"])
    facts = gpu_check.write(check)
    assert json.loads((tmp_path / "gpu-check.json").read_text()) == facts
    page = (tmp_path / "gpu-check.html").read_text()
    assert "ValueError: &lt;no&gt; kernel image" in page and "logs/sft.log" in page and "0.9999" in page
    assert all(what.split(":")[0] in page.replace("&#39;", "'") for what in STAGES.values())


def test_a_command_that_does_not_end_is_ended(check, monkeypatch):
    monkeypatch.setattr(gpu_check, "PATIENCE", 0.5)
    with pytest.raises(CheckError, match="no end after"):
        check.run(Stage("sft", log="logs/sft.log"), ["-c", "import time; time.sleep(99)"])


@pytest.mark.slow
def test_stages_not_asked_for_stay_as_they_were(check, monkeypatch, capsys):
    check.stages["bench"].outcome, check.stages["bench"].parity = "ok", {"kept": 1.0}
    gpu_check.write(check)
    monkeypatch.setattr(gpu_check, "Check", TwoStages)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--cpu", "--out", str(check.out), "--stages", "sft"])
    assert gpu_check.main() == 1
    facts = {stage["name"]: stage for stage in json.loads((check.out / "gpu-check.json").read_text())["stages"]}
    assert facts["sft"]["outcome"] == "failed" and facts["bench"]["parity"] == {"kept": 1.0}
