#!/usr/bin/env bash
# Pretrains the three stages of the toybox on one GPU in ten minutes, all counted.
#
#   launch/pretrain_toybox.sh FOLDER
#
# FOLDER gets base, sr256 and sr1024.safetensors, bfloat16 and under 16 MB each,
# manifest.json and progress.json. The same command resumes a FOLDER that was cut off.
# The folder is one of weights: --config.weights.base=FOLDER trains and samples with it.
#
# Variables:
#   INIT    weights to start from: a folder, shipped or random; default shipped. Stages
#           that the folder lacks start from shipped weights
#   TOY     1 for a step of each stage, to try all of it on a CPU
#   PYTHON  default python3
#
# The machine needs jax with CUDA, flax, optax, etils, numpy, pillow, sentencepiece and
# safetensors; scenes are made on its cores and rendered on the GPU, so no data set has
# to travel.
set -euo pipefail

if [[ $# -ne 1 || $1 == -* ]]; then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
  exit 2
fi
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# Pictures, weights and programs share the memory; none of it is to be held back.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
FOLDER=$1 INIT=${INIT:-shipped} exec "${PYTHON:-python3}" -u -c '
import logging
import os

from etils import epath

from imagen_booth.training import pretrain_on_device

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
logging.getLogger("jax").setLevel(logging.WARNING)
toy = os.environ.get("TOY") == "1"
pretrain_on_device.run(
    epath.Path(os.environ["FOLDER"]),
    pretrain_on_device.TOY if toy else pretrain_on_device.TEN_MINUTES,
    init=os.environ["INIT"],
)
'
