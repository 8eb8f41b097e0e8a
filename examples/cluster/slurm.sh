#!/bin/bash
# A collection on eight nodes without a driver; then everything else on one.
#
#     sbatch examples/cluster/slurm.sh RUN.toml
#     sbatch --dependency=afterany:JOB --array=0 examples/cluster/slurm.sh RUN.toml
#
#SBATCH --job-name=condec
#SBATCH --array=1-8
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail
plan=${1:-examples/cluster/run.toml}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

if [[ ${SLURM_ARRAY_TASK_ID:-0} == 0 ]]; then
    exec condec run "$plan" --quiet
fi
exec condec collect "$plan" --part slurm --quiet
