#!/bin/bash
# Snakemake in a SLURM job of its own, which is started again at its time limit until the run is done:
#     sbatch profiles/slurm/driver.sh [options of snakemake]
#SBATCH --job-name=fusion-driver --cpus-per-task=2 --mem=8000 --time=1-00:00:00
#SBATCH --requeue --open-mode=append --output=driver.log
#SBATCH --signal=B:USR1@120

snakemake --profile slurm "$@" &
main=$!
# 120 seconds before the limit: Snakemake ends, its jobs go on, and the same command will take them up
trap 'kill -TERM $main; timeout 60 tail --pid=$main -f /dev/null; scontrol requeue "$SLURM_JOB_ID"; exit' USR1
wait $main
