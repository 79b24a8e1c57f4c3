#!/bin/bash
# Train one network with several processes, for longer than one job may last. Everything else is as
# in job.sh, which this script continues with. Submit with:  sbatch job_many.sh
#
#SBATCH --job-name=sbi-many
#SBATCH --ntasks=4
#SBATCH --cpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

# srun starts the processes, and hands on to all of them the signal that job.sh sends to it.
export LAUNCHER="${LAUNCHER:-srun}"
source "${SLURM_SUBMIT_DIR:-.}/job.sh"
