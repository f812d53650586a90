#!/usr/bin/env bash
# Runs a job of this repository on GKE from a manifest, filling in its ${VARIABLES}.
#
#   launch/gke/job.sh run launch/gke/jobset.yaml      fine-tuning, one pod per host
#   launch/gke/job.sh run launch/sample_job.yaml      a file of prompts
#
# run applies it, waits for its end and deletes it if it fails. Each part alone:
#
#   show MANIFEST      prints the manifest, filled in
#   apply MANIFEST     starts the job
#   wait MANIFEST      waits until it is done (0) or failed (1)
#   logs MANIFEST      follows the logs of its pods
#   delete MANIFEST    deletes the job and its pods
#
# Variables: those that the manifest names, and
#   PAUSE              seconds between two status queries; default 20
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }

fail() {
  say "$*"
  exit 2
}

# Only variables that the manifest names are replaced; a value is never a pattern.
# shellcheck disable=SC2016 # the names are in the manifest, not here
show() {
  local text name
  text=$(<"$1")
  for name in $(grep -v '^ *#' "$1" | grep -o '\${[A-Z_]*}' | tr -d '${}' | sort -u); do
    [[ -n ${!name:-} ]] || fail "$name is not set, and $1 needs it"
    [[ ${!name} != *$'\n'* ]] || fail "$name should be one line"
    text=${text//"\${$name}"/"${!name}"}
  done
  printf '%s\n' "$text"
}

kind() { sed -n 's/^kind: *//p' "$1" | tr '[:upper:]' '[:lower:]'; }

apply() {
  local filled
  filled=$(show "$1")
  kubectl apply --filename=- <<< "$filled"
}

wait_for() {
  local object conditions silent=0
  object=$(kind "$1")/$NAME
  while :; do
    # A lost connection does not end the job; a job that is gone has ended.
    if conditions=$(kubectl get "$object" \
      '--output=jsonpath={.status.conditions[?(@.status=="True")].type}'); then
      silent=0
    else
      ((++silent < 10)) || fail "$object does not answer"
    fi
    case " $conditions " in
      *' Failed '*)
        say "$object failed"
        return 1
        ;;
      *' Complete '* | *' Completed '*) return 0 ;;
    esac
    sleep "$PAUSE"
  done
}

logs() {
  kubectl logs "--selector=booth=$NAME" --follow --prefix --tail=-1 \
    --max-log-requests=64
}

delete() { kubectl delete "$(kind "$1")/$NAME" --ignore-not-found; }

# shellcheck disable=SC2329 # called by the trap
clean_up() {
  local code=$?
  trap - EXIT
  if ((code != 0)); then
    say "deleting $NAME"
    kubectl logs "--selector=booth=$NAME" --prefix --tail=20 || true
    delete "$manifest" || say "$NAME could not be deleted; delete it by hand"
  fi
  exit "$code"
}

main() {
  PAUSE=${PAUSE:-20}
  [[ $PAUSE =~ ^[0-9]+$ ]] || fail "PAUSE=$PAUSE should be a whole number"
  local verb=${1:-}
  case $verb in
    run | show | apply | wait | logs | delete) ;;
    -h | --help)
      sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      return
      ;;
    *) fail "'$verb' is not known; use run, show, apply, wait, logs, delete or --help" ;;
  esac
  manifest=${2:-}
  [[ -f $manifest ]] || fail "'$manifest' is not a file; give a manifest after $verb"
  [[ -n ${NAME:-} ]] || fail "NAME is not set; give the name of the job"
  case $verb in
    run)
      # Check for missing variables before anything starts.
      show "$manifest" > /dev/null
      trap clean_up EXIT
      trap 'exit 130' INT
      trap 'exit 143' TERM
      apply "$manifest"
      wait_for "$manifest"
      ;;
    wait) wait_for "$manifest" ;;
    *) "$verb" "$manifest" ;;
  esac
}

main "$@"
