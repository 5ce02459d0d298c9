"""The study that needs no licence, as docs/study.md has it, on a CPU: from two corpora's root folders to a report.

And the demo's GRPO on the same clips. verl's own trainers, Ray, FSDP2 and vLLM, on one rank and on two, killed and
resumed. Minutes, not seconds: a training costs its start more than its steps, so each shows several things.
"""

import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import pytest
from documents import documented
from test_open_corpora import put_crema_d, put_ravdess

from verl_omni.__main__ import main
from verl_omni.data.check import RowsError
from verl_omni.data.files import read_rows
from verl_omni.evaluation.results import read_answers
from verl_omni.models.humanomni.tiny import build_tiny
from verl_omni.recipe import composed

pytestmark = pytest.mark.slow

SMALL = (  # 32 rollouts a step
    "data.train_batch_size=4",
    *("data.max_prompt_length=256", "data.max_response_length=24", "actor_rollout_ref.rollout.max_model_len=304"),
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=16",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
    # A model that has learnt nothing earns neither of the paper's rewards, and with equal ones GRPO has no gradient.
    "+reward.reward_kwargs={length: {limit: 24, buffer: 24}}",
    *("trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=-1", "data.shuffle=false"),
)
GRPO = documented("+recipe=[r1omni_open,cpu_for_grpo]")
TRAIN = "data/open/ravdess/train.parquet,data/open/crema_d/train.parquet"
RUN = Path("checkpoints/r1omni/r1omni_open")  # where the recipe has its checkpoints
# The model then returns no logits, and verl's engine stops where it returns no log-probabilities.
NO_LOGITS = ("model.use_fused_kernels=true", "model.fused_kernel_options.impl_backend=verl_omni")
# As the README has it.
LORA = (
    "model.lora_rank=8",
    "model.exclude_modules='.*(tower|bert|projector).*'",
    "model.lora.merge=true",
)


def main_of(command: list[str], *options: str) -> int:
    """``python -m verl_omni`` in this process; the shell's part, too."""
    words = command[command.index("verl_omni") + 1 :]
    return main([name for word in words for name in (glob(word) if "*" in word else [word])] + [*options])


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Iterator[Path]:
    """Both corpora's rows, and a tiny model where the released one would be; the working directory."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_tiny(folder / "checkpoints/humanomni_0.5b")
        put_ravdess(folder / "RAVDESS", [1, *range(5, 11)])
        put_crema_d(
            folder / "CREMA-D",
            ["1001_DFA_ANG_XX", "1002_IEO_HAP_LO", "1003_TIE_NEU_XX", "1004_IEO_SAD_HI", "1005_WSI_FEA_XX"],
        )
        assert main_of(documented("prepare ravdess --root RAVDESS"), "--partial") == 0  # not the whole corpus
        assert main_of(documented("prepare crema_d --root CREMA-D"), "--partial") == 0
        yield folder


@pytest.fixture(scope="module")
def cold_start(study) -> Path:
    """Adapters fine-tuned on two ranks, each with two loader processes, from an empty media cache; log: ``sft.log``."""
    command = documented("+recipe=[open_sft,cpu_for_sft]")
    arguments = [
        *(word.replace("nproc_per_node=1", "nproc_per_node=2") for word in command),
        *("trainer.n_gpus_per_node=2", *LORA, *NO_LOGITS),
        *("data.num_workers=2", "data.train_batch_size=4", "data.micro_batch_size_per_gpu=2"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERL_OMNI_MEDIA_CACHE", str(study / "media"))
        run(study, "sft", arguments)
    return study / "checkpoints/r1omni/open_sft/global_step_3/huggingface"


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
    return tuple(f"skip.rollout_tq.{key}={value}" for key, value in options.items())


def run(study: Path, name: str, arguments: list[str]) -> None:
    process = start(study, name, arguments)
    try:
        status = process.wait(timeout=900)
    finally:
        kill(process)
    assert status == 0, (study / f"{name}.log").read_text(errors="replace")[-4000:]


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


def changed_weights(before: Path, after: Path) -> set[str]:
    import torch
    from transformers import AutoModelForCausalLM

    import verl_omni.models  # noqa: F401

    base, trained = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict() for path in (before, after)
    )
    assert base.keys() == trained.keys()
    return {name for name in base if not torch.equal(base[name], trained[name])}


@pytest.fixture(scope="module")
def killed(study, cold_start) -> Killed:
    command = [*GRPO, *SMALL, *dumped(study), "trainer.total_training_steps=2", "trainer.save_freq=1"]
    tracker = study / RUN / "latest_checkpointed_iteration.txt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERL_OMNI_SHARING", "0")  # verl's dump keeps rollouts, not the clips they would refer to
        process = start(study, "killed", command)
        deadline = time.monotonic() + 600
        # A step's metrics are written after its checkpoint.
        while not (tracker.is_file() and tracker.read_text() and has_a_line(study / "killed.jsonl")):
            assert process.poll() is None and time.monotonic() < deadline, (study / "killed.log").read_text()[-4000:]
            time.sleep(0.1)
        kill(process)
        before, checkpoint = metrics_of(study, "killed"), int(tracker.read_text())
        tracker.write_text("")  # as a kill leaves it while verl notes a checkpoint
        run(study, "resumed", command)
    exported = study / RUN / "global_step_2" / "actor" / "huggingface"
    return Killed(before, checkpoint, metrics_of(study, "resumed"), exported)


def test_actors_are_either_trained_on_or_tested(study):
    train, test = ([study / f"data/open/{corpus}/{split}.parquet" for corpus in ("ravdess", "crema_d")]
                   for split in ("train", "test"))  # fmt: skip
    actors = [{row["extra_info"]["actor"] for file in files for row in read_rows(file)} for files in (train, test)]
    assert all(actors) and not actors[0] & actors[1]


def test_of_two_ranks_one_decodes_the_corpus_and_the_other_waits(cold_start, study):
    log = (study / "sft.log").read_text(errors="replace")
    (none, rest), (decoded, found) = sorted(
        re.findall(r"media files: (\d+) decoded, (\d+) from", log), key=lambda n: int(n[0])
    )
    assert none == found == "0" and decoded == rest and int(decoded) > 0


def test_adapters_are_exported_as_a_whole_model(cold_start, study):
    adapted = changed_weights(study / "checkpoints/humanomni_0.5b", cold_start)
    assert adapted and all(name.startswith("model.layers.") and "proj" in name for name in adapted)


def test_a_killed_run_goes_on_after_its_last_checkpoint(killed):
    assert killed.checkpoint == 1, "it was killed too late"
    assert sorted(killed.after) == [2]


def test_rollouts_have_the_actors_probabilities(killed):
    for step in (killed.before | killed.after).values():
        assert step["training/rollout_actor_probs_pearson_corr"] >= 0.9999
        assert {"reward/accuracy/mean", "reward/format/mean", "reward/length/mean"} <= step.keys()


def test_a_checkpoint_is_a_model(killed, cold_start):
    changed = changed_weights(cold_start, killed.exported)
    assert any(name.startswith("model.layers") for name in changed)
    assert not any("tower" in name for name in changed), "the towers are frozen"


def test_a_trained_model_answers_and_is_reported(killed, study, capsys):
    short = ("--max-tokens", "8", "--max-model-len", "304")
    run(study, "evaluate", [*documented("evaluate checkpoints/r1omni/r1omni_open"), *short])
    answers = read_answers("results/R1-Omni-open.jsonl")
    assert {answer.data_source for answer in answers} == {"ravdess", "crema_d"}
    tested = [row for file in glob("data/open/*/test.parquet") for row in read_rows(file)]
    assert len(answers) == len(tested) and not any(answer.error for answer in answers)
    assert main_of(documented("report results/*.jsonl --out report.html"), "--logs", "resumed.jsonl") == 0
    assert f"report.html: {len(answers)} clips" in capsys.readouterr().out
    page = Path("report.html").read_text()
    assert "RAVDESS" in page and "CREMA-D" in page


def test_two_ranks_have_the_first_loss_of_one_and_share_all_there_is(killed, cold_start, study, monkeypatch):
    """Two ranks replay the one rank's rollouts (verl's ``skip.rollout_tq``), so both see the same responses, and go on.

    The one rank's losses come from verl's logits without any sharing; the two ranks have sharing, no logits, and
    gradient checkpointing, and each prompt's rollouts from one of the two vLLM replicas.
    """
    router = {"router_class": "recorded_router.RecordedLoadBalancer", "record": str(study / "routes.txt")}
    (study / "router.yaml").write_text(json.dumps(router))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    # What is replayed was dumped with its clips: the recipe's check has nothing to refuse.
    overrides = [*SMALL, *dumped(study), "~hydra.callbacks.settings", "trainer.total_training_steps=2"]
    overrides += ["trainer.n_gpus_per_node=2", "actor_rollout_ref.model.enable_gradient_checkpointing=true"]
    overrides += [f"actor_rollout_ref.{override}" for override in NO_LOGITS]
    overrides += [f"actor_rollout_ref.rollout.router_config_path={study / 'router.yaml'}"]
    overrides += ["actor_rollout_ref.actor.optim.lr=0.005", "trainer.default_local_dir=two_ranks"]
    overrides += [f"actor_rollout_ref.model.path={cold_start}", "trainer.experiment_name=r1omni_open"]
    overrides += [f"data.{rows}_files=[{TRAIN}]" for rows in ("train", "val")]
    run(study, "two_ranks", [*documented("main_ppo +recipe=recipes/r1omni_cpu.yaml"), *overrides])
    one, steps = killed.before[1], metrics_of(study, "two_ranks")
    for metric in ("actor/loss", "actor/kl_loss", "critic/score/mean"):
        assert steps[1][metric] == pytest.approx(one[metric], abs=1e-5)
    # In a first step, rewards that are normalised in each group add up to a loss of 0: its gradient tells more.
    assert steps[1]["actor/grad_norm"] == pytest.approx(one["actor/grad_norm"], rel=1e-3)
    assert one["actor/grad_norm"] > 0
    for step in steps.values():  # the second one's rollouts are the two ranks' own
        assert step["global_seqlen/groups"] == step["global_seqlen/groups_computed"] == 4
        # At this learning rate, the first step's weights no longer have the second one's probabilities.
        assert step["training/rollout_actor_probs_pearson_corr"] >= 0.999
    routes = Counter(tuple(line.split()) for line in (study / "routes.txt").read_text().splitlines())
    assert list(routes.values()) == [8] * 4, "rollouts by prompt and replica"
    assert len({replica for _, replica in routes}) == 2


def test_a_broken_clip_stops_the_run_before_any_worker_starts(study, cold_start, tmp_path):
    """By verl's trainer as its task runner makes it, in this process: with Ray, it is 40 s of CPU time to an error."""
    import pandas as pd
    import ray
    from verl.trainer.ppo.v1 import get_trainer_cls

    rows = pd.read_parquet(study / "data/open/ravdess/train.parquet")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(Path(rows["videos"][0][0]).read_bytes()[:2000])
    rows.at[0, "videos"] = [str(broken)]
    rows.to_parquet(tmp_path / "rows.parquet")
    config = composed("[r1omni_open,cpu_for_grpo]", [f"data.train_files=[{tmp_path / 'rows.parquet'}]"])
    trainer = get_trainer_cls(config.trainer.v1.trainer_mode)(config=config)
    with pytest.raises(RowsError, match=r"broken\.mp4"):
        trainer.init()
    assert not ray.is_initialized()
