"""The study that needs no licence, as docs/study.md has it: from two corpora's root folders to a report."""

from glob import glob
from pathlib import Path

import pytest
from documents import documented
from test_grpo import metrics_of, run
from test_open_corpora import put_crema_d, put_ravdess

from verl_omni.__main__ import main
from verl_omni.data.files import read_rows
from verl_omni.evaluation.results import read_answers
from verl_omni.models.humanomni.tiny import build_tiny

pytestmark = pytest.mark.slow

SHORT = ("trainer.total_training_steps=1", "data.train_batch_size=4")


def main_of(command: list[str], *options: str) -> int:
    """``python -m verl_omni`` in this process; the shell's part, too."""
    words = command[command.index("verl_omni") + 1 :]
    return main([name for word in words for name in (glob(word) if "*" in word else [word])] + [*options])


def test_from_the_corpora_to_a_report(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    build_tiny(tmp_path / "checkpoints/humanomni_0.5b")
    put_ravdess(tmp_path / "RAVDESS", [1, 5, 6])
    put_crema_d(
        tmp_path / "CREMA-D",
        ["1001_DFA_ANG_XX", "1002_IEO_HAP_LO", "1003_TIE_NEU_XX", "1004_IEO_SAD_HI", "1005_WSI_FEA_XX"],
    )
    assert main_of(documented("prepare ravdess --root RAVDESS"), "--partial") == 0  # not the whole corpus
    assert main_of(documented("prepare crema_d --root CREMA-D"), "--partial") == 0
    train, test = ([f"data/open/{corpus}/{split}.parquet" for corpus in ("ravdess", "crema_d")]
                   for split in ("train", "test"))  # fmt: skip
    actors = [{row["extra_info"]["actor"] for file in files for row in read_rows(file)} for files in (train, test)]
    assert all(actors) and not actors[0] & actors[1]

    run(tmp_path, "sft", [*documented("+recipe=[open_sft,cpu_for_sft]"), *SHORT])
    grpo = [*documented("+recipe=[r1omni_open,cpu_for_grpo]"), *SHORT]
    grpo += ["actor_rollout_ref.actor.ppo_mini_batch_size=4", "data.max_response_length=32"]
    run(tmp_path, "grpo", [*grpo, "trainer.val_before_train=false"])
    [step] = metrics_of(tmp_path, "grpo").values()
    assert step["training/rollout_actor_probs_pearson_corr"] >= 0.999
    assert step["global_seqlen/groups_computed"] == 4
    assert {"reward/accuracy/mean", "reward/format/mean"} <= step.keys()

    run(tmp_path, "evaluate", [*documented("evaluate checkpoints/r1omni/r1omni_open"), "--max-tokens", "8",
                               "--max-model-len", "304"])  # fmt: skip
    answers = read_answers("results/R1-Omni-open.jsonl")
    assert {answer.data_source for answer in answers} == {"ravdess", "crema_d"}
    assert len(answers) == sum(len(read_rows(file)) for file in test) and not any(a.error for a in answers)
    assert main_of(documented("report results/*.jsonl --out report.html"), "--logs", "grpo.jsonl") == 0
    assert f"report.html: {len(answers)} clips" in capsys.readouterr().out
    page = Path("report.html").read_text()
    assert "RAVDESS" in page and "CREMA-D" in page
