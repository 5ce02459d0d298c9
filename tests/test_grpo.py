"""GRPO through verl's own ``main_ppo`` on a CPU: real Ray, FSDP2, vLLM and clips. Minutes, not seconds."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from documents import documented

pytestmark = pytest.mark.slow

# A random model earns no reward of ours, and with equal rewards GRPO has no gradient.
VARIED_REWARD = (
    "reward.reward_manager.name=naive",
    f"reward.custom_reward_function.path={Path(__file__).parent / 'varied_reward.py'}",
)
SMALL = (  # 32 rollouts a step
    *VARIED_REWARD,
    "data.train_batch_size=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=16",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
)
GRPO = documented("main_ppo +recipe=recipes/r1omni_cpu.yaml")
# The model then returns no logits, and verl's engine stops where it returns no log-probabilities.
NO_LOGITS = ("model.use_fused_kernels=true", "model.fused_kernel_options.impl_backend=verl_omni")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A small demo corpus and a tiny model."""
    from verl_omni.corpora.demo import build_demo
    from verl_omni.models.humanomni.tiny import build_tiny

    folder = tmp_path_factory.mktemp("study")
    build_demo(folder / "data", n_train=32, n_test=4, n_sft=4)
    build_tiny(folder / "base")
    return folder


def command(study: Path, name: str, words: list[str], *overrides: str) -> list[str]:
    return [
        *words,
        *(f"actor_rollout_ref.model.path={study / 'base'}", f"data.train_files=[{study / 'data/train.parquet'}]"),
        *(f"data.val_files=[{study / 'data/test.parquet'}]", f"trainer.default_local_dir={study / name}"),
        *("trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=-1", "data.shuffle=false"),
        *overrides,
    ]


def start(study: Path, name: str, arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "VERL_FILE_LOGGER_PATH": str(study / f"{name}.jsonl")}
    log = (study / f"{name}.log").open("wb")
    # A session of its own: killing the group kills Ray's processes with it.
    return subprocess.Popen(
        arguments, cwd=study, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


def has_a_line(file: Path) -> bool:
    return file.is_file() and b"\n" in file.read_bytes()


def metrics_of(study: Path, name: str) -> dict[int, dict]:
    lines = (study / f"{name}.jsonl").read_bytes().splitlines()
    return {record["step"]: record["data"] for record in map(json.loads, lines)}


def dumped(study: Path) -> tuple[str, ...]:
    """verl writes the first step's rollouts to a folder, or replays what it finds there."""
    options = {"enable": "true", "dump_dir": study / "rollouts", "steps": "[1]"}
    return *(f"skip.rollout_tq.{key}={value}" for key, value in options.items()), "trainer.experiment_name=ranks"


def train(study: Path, name: str, words: list[str], *overrides: str) -> dict[int, dict]:
    """GRPO to the end; metrics by step."""
    run(study, name, command(study, name, words, *overrides))
    return metrics_of(study, name)


def run(study: Path, name: str, arguments: list[str]) -> None:
    process = start(study, name, arguments)
    try:
        status = process.wait(timeout=900)
    finally:
        kill(process)
    assert status == 0, (study / f"{name}.log").read_text(errors="replace")[-4000:]


def queues_of(process: subprocess.Popen) -> set[str]:
    """vLLM's shared memory that a trainer's processes have mapped, as the kernel names it."""
    pids = subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    found = set()
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
            found |= {line.split(maxsplit=5)[5] for line in lines if "/dev/shm/psm_" in line}
    return found


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the trainer and to everything it started; Ray's daemons leave the group, but not the session."""
    subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
    if process.poll() is None:
        process.kill()
    process.wait()


@dataclass(frozen=True)
class Killed:
    """A run on one rank that was killed after a checkpoint, and went on by the same command."""

    before: dict[int, dict]  # metrics by step, until it was killed
    checkpoint: int  # the last step on record by then
    after: dict[int, dict]
    exported: Path
    queues: set[str]  # of vLLM, when it was killed


@pytest.fixture(scope="module")
def killed(study) -> Killed:
    overrides = (*SMALL, *dumped(study), "trainer.total_training_steps=3", "trainer.save_freq=1")
    tracker = study / "killed" / "latest_checkpointed_iteration.txt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERL_OMNI_SHARING", "0")  # verl's dump keeps rollouts, not the clips they would refer to
        process = start(study, "killed", command(study, "killed", GRPO, *overrides))
        deadline = time.monotonic() + 600
        # A step's metrics are written after its checkpoint.
        while not (tracker.is_file() and tracker.read_text() and has_a_line(study / "killed.jsonl")):
            assert process.poll() is None and time.monotonic() < deadline, (study / "killed.log").read_text()[-4000:]
            time.sleep(0.1)
        queues = queues_of(process)
        kill(process)
        before, checkpoint = metrics_of(study, "killed"), int(tracker.read_text())
        tracker.write_text("")  # as a kill leaves it while verl notes a checkpoint
        after = train(study, "killed", GRPO, *overrides)
    return Killed(before, checkpoint, after, study / "killed" / "global_step_3" / "actor" / "huggingface", queues)


def test_a_killed_run_goes_on_after_its_last_checkpoint(killed):
    assert killed.checkpoint < 3, "it was killed too late"
    assert sorted(killed.after) == list(range(killed.checkpoint + 1, 4))


def test_vllms_queues_are_freed_with_its_processes(killed):
    assert len(killed.queues) == 2 and all(queue.endswith(" (deleted)") for queue in killed.queues)


def test_rollouts_have_the_actors_probabilities(killed):
    for step in (killed.before | killed.after).values():
        assert step["training/rollout_actor_probs_pearson_corr"] >= 0.9999


def test_a_checkpoint_is_a_model(killed, study):
    changed = changed_weights(study / "base", killed.exported)
    assert any(name.startswith("model.layers") for name in changed)
    assert not any("tower" in name for name in changed), "the towers are frozen"


def test_two_ranks_have_the_first_loss_of_one_and_share_all_there_is(killed, study, monkeypatch):
    """Two ranks replay the one rank's rollouts (verl's ``skip.rollout_tq``), so both see the same responses, and go on.

    The one rank's losses come from verl's logits without any sharing; the two ranks have sharing, no logits, and
    gradient checkpointing, and each prompt's rollouts from one of the two vLLM replicas.
    """
    router = {"router_class": "recorded_router.RecordedLoadBalancer", "record": str(study / "routes.txt")}
    (study / "router.yaml").write_text(json.dumps(router))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    # What is replayed was dumped with its clips: the recipe's check has nothing to refuse.
    overrides = (*SMALL, *dumped(study), "~hydra.callbacks.settings", "trainer.total_training_steps=2")
    overrides += ("trainer.n_gpus_per_node=2", "actor_rollout_ref.model.enable_gradient_checkpointing=true")
    overrides += tuple(f"actor_rollout_ref.{override}" for override in NO_LOGITS)
    overrides += (f"actor_rollout_ref.rollout.router_config_path={study / 'router.yaml'}",)
    steps = train(study, "two_ranks", GRPO, *overrides)
    one, two = killed.before[1], steps[1]
    for metric in ("actor/loss", "actor/kl_loss", "critic/score/mean"):
        assert two[metric] == pytest.approx(one[metric], abs=1e-5)
    assert two["actor/grad_norm"] == pytest.approx(one["actor/grad_norm"], rel=1e-3)
    assert one["actor/grad_norm"] > 0
    for step in steps.values():  # the second one's rollouts are the two ranks' own
        assert step["global_seqlen/groups"] == step["global_seqlen/groups_computed"] == 4
        assert step["training/rollout_actor_probs_pearson_corr"] >= 0.999
    routes = Counter(tuple(line.split()) for line in (study / "routes.txt").read_text().splitlines())
    assert list(routes.values()) == [8] * 4, "rollouts by prompt and replica"
    assert len({replica for _, replica in routes}) == 2


def changed_weights(before: Path, after: Path) -> set[str]:
    import torch
    from transformers import AutoModelForCausalLM

    import verl_omni.models  # noqa: F401

    base, trained = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict() for path in (before, after)
    )
    assert base.keys() == trained.keys()
    return {name for name in base if not torch.equal(base[name], trained[name])}


def answer_with_vllm(exported: Path, study: Path) -> None:
    evaluate = [
        sys.executable,
        "-m",
        "verl_omni",
        "evaluate",
        str(exported),
        "--data",
        str(study / "data/test.parquet"),
    ]
    limits = ["--max-tokens", "8", "--max-model-len", "304", "--out", str(study / "results")]
    subprocess.run([*evaluate, *limits], check=True, timeout=300)


# As the README has it.
LORA = (
    "model.lora_rank=8",
    "model.exclude_modules='.*(tower|bert|projector).*'",
    "model.lora.merge=true",
)


@pytest.fixture(scope="module")
def cold_start(study) -> Path:
    """Adapters fine-tuned on two ranks, each with two loader processes, from an empty media cache; log: ``sft.log``."""
    python, *trainer = documented("sft_trainer +recipe=recipes/emer_sft_cpu.yaml")
    torchrun = (python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    arguments = [
        *(*torchrun, *trainer, "trainer.n_gpus_per_node=2", *LORA),
        *(f"model.path={study / 'base'}", f"data.train_files=[{study / 'data/sft.parquet'}]", "trainer.total_epochs=2"),
        *("data.num_workers=2", "data.train_batch_size=4", "data.micro_batch_size_per_gpu=2"),
        f"trainer.default_local_dir={study / 'sft'}",
        *NO_LOGITS,
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERL_OMNI_MEDIA_CACHE", str(study / "media"))
        run(study, "sft", arguments)
    return study / "sft" / "global_step_6" / "huggingface"


def test_of_two_ranks_one_decodes_the_corpus_and_the_other_waits(cold_start, study):
    log = (study / "sft.log").read_text(errors="replace")
    (none, rest), (decoded, found) = sorted(
        re.findall(r"media files: (\d+) decoded, (\d+) from", log), key=lambda n: int(n[0])
    )
    assert none == found == "0" and decoded == rest and int(decoded) > 0


def test_lora_from_the_cold_start_to_grpo_in_bfloat16(cold_start, study):
    """Adapters by both trainers; each exports a whole model, and vLLM gets the merged weights after each step.

    The recipe's other precision runs here and nowhere else: slow, on a CPU that has no instructions for it.
    """
    adapted = changed_weights(study / "base", cold_start)
    assert adapted and all(name.startswith("model.layers.") and "proj" in name for name in adapted)

    overrides = [f"actor_rollout_ref.{override}" for override in LORA]
    overrides += [f"actor_rollout_ref.model.path={cold_start}", "actor_rollout_ref.actor.optim.lr=0.02"]
    overrides += ["trainer.total_training_steps=3", "trainer.save_freq=3", "actor_rollout_ref.rollout.dtype=bfloat16"]
    overrides += ["data.max_response_length=16"]
    steps = train(study, "lora", GRPO, *SMALL, *overrides)
    for step in steps.values():
        assert step["actor/grad_norm"] > 0
        # At this learning rate, three steps later the weights of the start correlate by 0.7 only.
        assert step["training/rollout_actor_probs_pearson_corr"] >= 0.99
    trained = study / "lora" / "global_step_3" / "actor" / "huggingface"
    assert changed_weights(cold_start, trained) == adapted


def test_a_broken_clip_stops_the_run_before_any_worker_starts(study, tmp_path):
    import pandas as pd

    rows = pd.read_parquet(study / "data/train.parquet")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(Path(rows["videos"][0][0]).read_bytes()[:2000])
    rows.at[0, "videos"] = [str(broken)]
    rows.to_parquet(tmp_path / "rows.parquet")
    arguments = command(study, "broken", GRPO, f"data.train_files=[{tmp_path / 'rows.parquet'}]")
    process = start(study, "broken", arguments)
    try:
        assert process.wait(timeout=300) != 0
    finally:
        kill(process)
    log = (study / "broken.log").read_text(errors="replace")
    assert "broken.mp4" in log
    assert "WorkerDict" not in log
