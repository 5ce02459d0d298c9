#!/usr/bin/env bash
# The cold start: supervised fine-tuning of HumanOmni-0.5B on explained answers. Arguments are further overrides.
#   MODEL_PATH=… TRAIN_FILES=… bash run_cold_start.sh trainer.total_epochs=3
set -euxo pipefail

NGPUS=${NGPUS:-8}

torchrun --standalone --nproc_per_node="$NGPUS" -m verl.trainer.sft_trainer \
    +recipe="${RECIPE:-emer_sft}" \
    model.path="${MODEL_PATH:-checkpoints/humanomni_0.5b}" \
    data.train_files="[${TRAIN_FILES:-data/emer/train_sft.parquet}]" \
    trainer.n_gpus_per_node="$NGPUS" \
    "$@"
