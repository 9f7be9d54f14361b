#!/usr/bin/env bash
# Started by the job scripts: a command on all tasks of the job, as ranks that find each other.
set -uo pipefail
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" # nodes often have no network: fetch ahead of time

# The processes end each other, and the first one after the others: Slurm must not end them earlier.
# --cpu-bind=none: the processes of a node share out its cores themselves.
srun --kill-on-bad-exit=0 --wait=120 --cpu-bind=none bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
    export LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec "$@"' rank "$@"
code=$?

# 130: stopped by a signal, everything is saved. The job goes on from there when it runs again.
if [ "$code" -eq 130 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
