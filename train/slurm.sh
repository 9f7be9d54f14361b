#!/usr/bin/env bash
# SAEs on one node or many: sbatch [--nodes 4] train/slurm.sh train/configs/llama-3.2-1b.toml
# One process per GPU. Adapt the lines below to the cluster: partition, GPUs per node, time, cores.
#SBATCH --job-name=saefeat-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@600   # 10 minutes before the end: save and stop
#SBATCH --requeue           # after a pre-emption, or when a node has died
#SBATCH --open-mode=append
#SBATCH --output=train-%j.log
set -uo pipefail
: "${1:?give a configuration file}"

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" # nodes often have no network: fetch ahead of time
export config="$1"

# The processes end each other, and the first one after the others: Slurm must not end them earlier.
# --cpu-bind=none: the processes of a node share out its cores themselves.
srun --kill-on-bad-exit=0 --wait=120 --cpu-bind=none bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
    export LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec python train/sae.py "$config"'
code=$?

# 130: stopped by a signal, everything is saved. The job goes on from there when it runs again.
if [ "$code" -eq 130 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
