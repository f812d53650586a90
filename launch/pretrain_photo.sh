#!/usr/bin/env bash
# Pretrains the photo stage, 256 -> 1024 px, on one GPU for some minutes.
#
#   launch/pretrain_photo.sh PHOTOS FOLDER
#
# PHOTOS is a folder of photographs with a SOURCES.csv, as docs/deepfloyd.md says. FOLDER/run
# is the run directory, which the same command resumes; FOLDER/weights gets
# sr1024.safetensors, bfloat16 and under 16 MB, and manifest.json.
#
# Variables:
#   SECONDS_OF_TRAINING  compiling included; default 480
#   STEPS                where the rate of the run ends; default 20000
#   BATCH                crops of 128 px in a step; default 64
#   INIT                 weights to start from: a folder, shipped or random; default random
#   PYTHON               default python3
set -euo pipefail

if [[ $# -ne 2 || $1 == -* ]]; then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
  exit 2
fi
photos=$(realpath "$1") folder=$2
mkdir -p "$folder"
folder=$(realpath "$folder")
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}

# At the time limit it saves and ends with 75, which timeout reports as 124.
code=0
timeout --signal=TERM "${SECONDS_OF_TRAINING:-480}" \
  "$python" -m imagen_booth.pretrain --config=configs/pretrain.py:photo_sr1024 \
  --config.data_dir="$photos" --config.steps="${STEPS:-20000}" \
  --config.batch="${BATCH:-64}" --init="${INIT:-random}" \
  --config.preview_every=0 --workdir="$folder/run" || code=$?
if [[ $code -ne 0 && $code -ne 75 && $code -ne 124 ]]; then
  exit "$code"
fi
"$python" -m imagen_booth.convert export --run="$folder/run" --parts=sr1024 \
  --dtype=bfloat16 --to="$folder/weights"
