#!/usr/bin/env bash
# Runs a job on a Cloud TPU VM, one host or many, from a clone of this repository.
#
#   launch/tpu_vm.sh up-run-down train --config=configs/dog.py:if_m
#
# creates the machine, sets it up, runs the command on all workers, follows its log,
# restarts it after a stop or a preemption, fetches the results and deletes the
# machine, also when something fails. Each part alone:
#
#   create                    creates the machine, on demand, as spot, or queued
#   setup                     installs this repository on all workers
#   run COMMAND [FLAG ...]    starts train, sample or pretrain on all workers
#   logs                      follows worker 0 to the end; exits with the job's code
#   fetch                     copies everything of the run but its checkpoints
#   delete                    deletes the machine and its queued request
#
# Variables:
#   PROJECT, ZONE, NAME       project, zone and name of the machine
#   ACCELERATOR               v4-8, v5litepod-16, ...
#   VERSION                   runtime version, such as tpu-ubuntu2204-base
#   KIND                      on-demand, spot, queued or queued-spot
#   WORKDIR                   run directory, gs://BUCKET/FOLDER
#   TO                        local folder for the results
#   RESTARTS                  most restarts after a stop or a preemption; default 20
#   PAUSE                     seconds between two status queries; default 20
# shellcheck disable=SC2153 # variables in capitals come from the environment; need checks them
set -euo pipefail

readonly SAVED=75     # exit code: saved and stopped early, run the command again
readonly PREEMPTED=79 # exit code of logs: the machine is gone

say() { printf '%s\n' "$*" >&2; }

fail() {
  say "$*"
  exit 2
}

need() {
  local name
  for name in "$@"; do
    [[ -n ${!name:-} ]] || fail "$name is not set; launch/tpu_vm.sh --help explains it"
  done
}

check_kind() {
  need KIND
  case $KIND in
    on-demand | spot | queued | queued-spot) ;;
    *) fail "KIND=$KIND is not known; use on-demand, spot, queued or queued-spot" ;;
  esac
}

check_workdir() {
  need WORKDIR
  # It must outlive the machine and be visible to every host.
  [[ $WORKDIR == gs://?* ]] || fail "WORKDIR=$WORKDIR should be a folder like gs://BUCKET/dog"
}

check_command() {
  case ${1:-} in
    train | sample | pretrain) ;;
    *) fail "run '${1:-}' is not known; use train, sample or pretrain" ;;
  esac
}

check_number() {
  [[ ${!1} =~ ^[0-9]+$ ]] || fail "$1=${!1} should be a whole number"
}

tpu() { gcloud compute tpus "$@" "--project=$PROJECT" "--zone=$ZONE"; }

on() {
  local workers=$1
  shift
  tpu tpu-vm ssh "$NAME" "--worker=$workers" "--command=$*"
}

create() {
  need PROJECT ZONE NAME ACCELERATOR VERSION
  check_kind
  local spot=()
  [[ $KIND != *spot ]] || spot=(--spot)
  case $KIND in
    queued*)
      tpu queued-resources create "$NAME" "--node-id=$NAME" \
        "--accelerator-type=$ACCELERATOR" "--runtime-version=$VERSION" \
        ${spot[@]+"${spot[@]}"}
      wait_for_queue
      ;;
    *)
      tpu tpu-vm create "$NAME" "--accelerator-type=$ACCELERATOR" \
        "--version=$VERSION" ${spot[@]+"${spot[@]}"}
      ;;
  esac
}

wait_for_queue() {
  local state
  while :; do
    state=$(tpu queued-resources describe "$NAME" '--format=value(state.state)')
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED) fail "the queued request $NAME is $state; delete it and create it again" ;;
    esac
    say "the queued request $NAME is $state"
    sleep "$PAUSE"
  done
}

setup() {
  need PROJECT ZONE NAME
  local root archive
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  archive=$(mktemp -d)/imagen_booth.tar.gz
  git -C "$root" diff --quiet HEAD || say "changes that are not committed are not sent"
  git -C "$root" archive --format=tar.gz "--output=$archive" HEAD
  tpu tpu-vm scp "$archive" "$NAME:imagen_booth.tar.gz" --worker=all
  rm -r "$(dirname "$archive")"
  # The machine's own Python is older than the package allows.
  on all 'rm -rf imagen_booth && mkdir imagen_booth' \
    '&& tar -xzf imagen_booth.tar.gz -C imagen_booth && cd imagen_booth' \
    '&& python3 -m pip install --quiet --user uv' \
    '&& python3 -m uv venv --quiet --python 3.12' \
    "&& python3 -m uv pip install --quiet --editable '.[tpu,gcs]'"
}

# Detached, so that a broken connection does not end the job; locked, so that a restart
# waits for a worker that is still stopping.
start() {
  need PROJECT ZONE NAME
  check_workdir
  check_command "$@"
  local command=$1 folder=--workdir
  shift
  [[ $command != sample ]] || folder=--run
  local job
  job=$(printf '%q ' .venv/bin/python -m "imagen_booth.$command" "$@" "$folder=$WORKDIR")
  job+='>> job.log 2>&1; echo $? > job.code'
  on all "cd imagen_booth && rm -f job.code && touch job.log" \
    "&& (setsid nohup flock job.lock bash -c $(printf '%q' "$job")" \
    '< /dev/null > /dev/null 2>&1 &)'
}

# A lost connection does not end the job: only its exit code does, or the end of the
# machine.
follow() {
  need PROJECT ZONE NAME
  local code state
  while :; do
    on 0 'cd imagen_booth && (until [ -f job.code ]; do sleep 2; done' \
      '& tail --lines=20 --pid=$! --follow=name job.log)' || true
    code=$(on 0 'cat imagen_booth/job.code' || true)
    if [[ $code =~ ^[0-9]+$ ]]; then
      return "$code"
    fi
    state=$(tpu tpu-vm describe "$NAME" '--format=value(state)' || echo MISSING)
    case $state in
      PREEMPTED | TERMINATED | STOPPED | MISSING)
        say "the machine $NAME is $state"
        return "$PREEMPTED"
        ;;
    esac
    sleep "$PAUSE"
  done
}

fetch() {
  need TO
  check_workdir
  mkdir -p "$TO"
  gcloud storage rsync --recursive '--exclude=^(base|sr256|sr1024)/' "$WORKDIR" "$TO"
}

delete() {
  need PROJECT ZONE NAME
  check_kind
  case $KIND in
    queued*) tpu queued-resources delete "$NAME" --force --quiet ;;
    *) tpu tpu-vm delete "$NAME" --quiet ;;
  esac
}

# shellcheck disable=SC2329 # called by the trap
clean_up() {
  local code=$?
  trap - EXIT
  say "deleting $NAME"
  delete || say "$NAME could not be deleted and may cost money; delete it by hand"
  exit "$code"
}

up_run_down() {
  # Check everything before anything costs money.
  need PROJECT ZONE NAME ACCELERATOR VERSION TO
  check_kind
  check_workdir
  check_command "$@"
  local code=$PREEMPTED started
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  for ((started = 0; started <= RESTARTS; started++)); do
    if ((code == PREEMPTED)); then
      # A preempted machine may still be listed, or be gone.
      ((started == 0)) || delete || true
      create
      setup
    else
      say "saved and stopped early; restarting"
    fi
    start "$@"
    code=0
    follow || code=$?
    ((code == SAVED || code == PREEMPTED)) || break
  done
  ((code != PREEMPTED)) || code=$SAVED
  ((code == 0)) || say "the job ended with code $code"
  # A failed run has a report too.
  fetch || ((code != 0)) || fail "the results are in $WORKDIR but could not be fetched"
  exit "$code"
}

main() {
  RESTARTS=${RESTARTS:-20} PAUSE=${PAUSE:-20}
  check_number RESTARTS
  check_number PAUSE
  local verb=${1:-}
  shift || true
  case $verb in
    create | setup | fetch | delete) "$verb" ;;
    run) start "$@" ;;
    logs) follow ;;
    up-run-down) up_run_down "$@" ;;
    -h | --help) sed -n '2,/^# shellcheck/{/^# shellcheck/d;/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" ;;
    *) fail "'$verb' is not known; use create, setup, run, logs, fetch, delete, up-run-down or --help" ;;
  esac
}

main "$@"
