#!/usr/bin/env bash
# Both stages on corpora that need no licence, from their folders:
#   RAVDESS=… CREMA_D=… bash run_open.sh
set -euxo pipefail

NGPUS=${NGPUS:-8}

python3 -m verl_omni prepare ravdess --root "$RAVDESS" --out data/open/ravdess --fold 1 --explanations rules
python3 -m verl_omni prepare crema_d --root "$CREMA_D" --out data/open/crema_d --fold 1 --explanations rules
torchrun --standalone --nproc_per_node="$NGPUS" -m verl.trainer.sft_trainer \
    +recipe=open_sft \
    trainer.n_gpus_per_node="$NGPUS"
python3 -m verl.trainer.main_ppo \
    +recipe=r1omni_open \
    trainer.n_gpus_per_node="$NGPUS"
