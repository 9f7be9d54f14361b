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
exec bash train/srun.sh python train/sae.py "$1"
