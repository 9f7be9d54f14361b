#!/usr/bin/env bash
# Statistics on one node or many, one process per GPU:
#     sbatch [--nodes 4] train/collect.sh OUT --model M --corpus C --saes SAES
# As an array of jobs that need not run at the same time; OUT/shard-* are merged after it:
#     SHARDS=16 sbatch --array 0-15 train/collect.sh OUT --model M --corpus C --saes SAES
# Adapt the lines below to the cluster: partition, GPUs per node, time, cores.
#SBATCH --job-name=saefeat-collect
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@600   # 10 minutes before the end: save and stop
#SBATCH --requeue           # after a pre-emption, or when a node has died
#SBATCH --open-mode=append
#SBATCH --output=collect-%j.log
set -uo pipefail
out="${1:?give an output directory, and after it the options of saefeat collect}"
shift

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    : "${SHARDS:?set SHARDS to the number of shards}" # one job of the array may run again alone
    set -- --shard "$SLURM_ARRAY_TASK_ID/$SHARDS" "$@"
    out="$out/shard-$SLURM_ARRAY_TASK_ID"
fi
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" # nodes often have no network: fetch ahead of time

# The processes end each other, and the first one after the others: Slurm must not end them earlier.
# --cpu-bind=none: the processes of a node share out its cores themselves.
srun --kill-on-bad-exit=0 --wait=120 --cpu-bind=none bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
    export LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec python -m saefeat collect "$@"' collect --out "$out" "$@"
code=$?

# 130: stopped by a signal, everything is saved. The job goes on from there when it runs again.
if [ "$code" -eq 130 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
