#!/usr/bin/env bash
# The whole study on a CPU with a model of a million parameters and a corpus made on the spot: 10 to 21 minutes on 2 cores.
set -euxo pipefail

python3 -m verl_omni demo "$@"
