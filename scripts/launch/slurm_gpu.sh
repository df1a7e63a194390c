#!/usr/bin/env bash
# Trains on GPUs under Slurm: one process a GPU, the same command on all, queued again until done.
#
#   sbatch --nodes=4 --export=ALL,CONFIG=configs/NAME.py,DATA=...,WORKDIR=... scripts/launch/slurm_gpu.sh
#
# Submit from the root of the repository, where .venv holds `pip install -e ".[cuda]"`, on a file
# system that all nodes see. Fit the lines below to the cluster (GPUs a node, partition, account). Set:
#
#   CONFIG     configs/NAME.py; its mesh has as many devices as there are GPUs
#   DATA       the data set
#   WORKDIR    of the run
#   CACHE      compiled programs, shared by all starts; WORKDIR.compiled if unset
#   FLAGS      more flags of scripts/train.py, if any
#
# 5 minutes before the time limit every process is sent SIGTERM: all of them finish the step in hand,
# save, and exit with status 75, which puts the job back into the queue. A node that fails, too.

#SBATCH --job-name=modbrick
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

: "${CONFIG:?a config, configs/NAME.py}" "${DATA:?the data set}" "${WORKDIR:?of the run}"
PREEMPTED=75 # exit status of scripts/train.py: saved, start me again

# jax finds the other processes through Slurm's own variables. The first process to end must not
# take those along that are still saving.
export JAX_COMPILATION_CACHE_DIR=${CACHE:-$WORKDIR.compiled}
status=0
# shellcheck disable=SC2086 # FLAGS are several words
srun --kill-on-bad-exit=0 --wait=600 .venv/bin/python scripts/train.py --config="$CONFIG" \
  --config.data.path="$DATA" --workdir="$WORKDIR" --start_timeout=86400 ${FLAGS:-} || status=$?

if ((status == PREEMPTED)); then
  echo "start again: the last one saved and stopped"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status" # 0: finished; 2: bad input; else a crash: submit again to go on from the last checkpoint
