#!/usr/bin/env bash
# GRPO with verifiable rewards, from the last checkpoint of run_cold_start.sh. Arguments are further overrides.
#   TRAIN_FILES=a.parquet,b.parquet VAL_FILES=c.parquet bash run_grpo.sh actor_rollout_ref.rollout.n=4
set -euxo pipefail

python3 -m verl.trainer.main_ppo \
    +recipe="${RECIPE:-r1omni}" \
    data.train_files="[${TRAIN_FILES:-data/dfew/train.parquet,data/mafw/train.parquet}]" \
    data.val_files="[${VAL_FILES:-data/dfew/test.parquet,data/mafw/test.parquet}]" \
    trainer.n_gpus_per_node="${NGPUS:-8}" \
    "$@"
