#!/usr/bin/env bash
#SBATCH --job-name=fvjax --output=%x-%j.log --open-mode=append
#SBATCH --requeue --signal=USR1@120
#
# Trains a config on the nodes of a Slurm job, with one process per GPU. Run it in the repository's root:
#
#     launch/slurm.sh --nodes=2 --gpus-per-node=4 --cpus-per-gpu=6 --time=12:00:00 configs/vit_lora.py [--config.key=value …]
#
# Options before the config go to sbatch, flags after it to fvjax.main. `sbatch --nodes=… launch/slurm.sh CONFIG` does the
# same. Without GPUs, --ntasks-per-node sets the number of processes. If $SLURM_TMPDIR is set, each node first copies the
# config's stores there. The run is written to runs/CONFIG-JOBID, or to --workdir, and the log to fvjax-JOBID.log. Two
# minutes before the time limit, at a preemption and at `scancel --signal=USR1 JOBID`, the run saves its state; the job is
# queued again and then resumes. The exit code is that of fvjax.main.
#
# There is one process per GPU because this is how jax.distributed reads Slurm's variables: a task's GPU is the one of its
# SLURM_LOCALID.
set -euo pipefail

fail() {
  echo "launch/slurm.sh: error: $1" >&2
  exit 2
}

options=()
while [[ ${1:-} == -* ]]; do
  options+=("$1")
  shift
done
config=${1:-}
[[ -f fvjax/main.py ]] || fail "$PWD is not fvjax's repository; go there first"
[[ -f ${config%%:*} ]] || fail "usage: launch/slurm.sh [sbatch's --option=value …] configs/NAME.py [--config.key=value …]"
shift
if [[ -z ${SLURM_JOB_ID:-} ]]; then
  exec sbatch "${options[@]}" launch/slurm.sh "$config" "$@"
fi
((${#options[@]} == 0)) || fail "${options[0]} is for sbatch, but this is a job already"

# Exit code 75 means that the run was asked to stop and has saved its state.
trap 'if (($? == 75)); then echo "launch/slurm.sh: saved; job $SLURM_JOB_ID is queued again"; scontrol requeue "$SLURM_JOB_ID"; fi' EXIT
PATH=$PWD/.venv/bin:$PATH
name=$(basename "${config%%:*}" .py)
flags=(--config="$config" --workdir="runs/$name-$SLURM_JOB_ID" "$@") # if the user gives --workdir too, the last one counts
if [[ -n ${SLURM_TMPDIR:-} ]]; then
  staged=$(srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 python -m launch.stage "${flags[@]}" | sort -u)
  if [[ -n $staged ]]; then mapfile -t -O "${#flags[@]}" flags <<<"$staged"; fi
fi

tasks=() gpus=${SLURM_GPUS_ON_NODE:-0}
if ((gpus)); then # no binding to CPUs: the processes of a node share all of them, because data workers need CPUs too
  tasks=(--ntasks=$((SLURM_NNODES * gpus)) --ntasks-per-node="$gpus" --cpu-bind=none --overcommit)
  ((SLURM_CPUS_ON_NODE >= 2 * gpus)) ||
    echo "launch/slurm.sh: $SLURM_CPUS_ON_NODE CPUs for $gpus GPUs will be slow; add --cpus-per-gpu=6" >&2
fi
# A process that loses its peers ends by itself and says why. srun kills those that still hang 90 s later.
srun "${tasks[@]}" --kill-on-bad-exit=0 --wait=90 python -m fvjax.main "${flags[@]}"
