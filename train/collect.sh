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
exec bash train/srun.sh python -m saefeat collect --out "$out" "$@"
