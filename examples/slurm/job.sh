#!/bin/bash
# Train for longer than one job may last: two minutes before its time limit Slurm sends SIGUSR1,
# the training saves itself in the middle of an epoch and ends, and the job puts itself back into
# the queue. Submit with:  sbatch job.sh   or, many at once:  sbatch --array=0-9 job.sh
#
#SBATCH --job-name=sbi
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --cpus-per-task=1

set -u
PYTHON="${PYTHON:-python}"
SCRIPT="${SCRIPT:-train.py}"
LAUNCHER="${LAUNCHER:-}"

# In an array every task has a run directory and a name of its own, <array>_<task>: the number in
# SLURM_JOB_ID may stand for the whole array, and requeueing it would start finished tasks again.
task="${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
job="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}$task"
run="${SBI_IGNITE_CHECKPOINT__DIRECTORY:-runs/exp1}$task"
export SBI_IGNITE_CHECKPOINT__DIRECTORY="$run"

# "B:" sends the signal to this shell alone, which hands it on. The training runs in the
# background, because bash runs a trap only when no command in the foreground keeps it waiting.
signalled="" training=""
forward() {
    signalled="$1"
    [ -n "$training" ] && kill -s "$1" "$training" 2>/dev/null
}
trap 'forward USR1' USR1
trap 'forward TERM' TERM
$LAUNCHER "$PYTHON" "$SCRIPT" &
training=$!

# `wait` returns early whenever a trap has run: wait until the training is really over.
while true; do
    wait "$training"
    status=$?
    kill -0 "$training" 2>/dev/null || break
done

# The files of the run tell whether there is something to continue, and whether it gets on.
if [ "$signalled" = "USR1" ] && [ "$status" -ne 0 ] && "$PYTHON" -m sbi_ignite.runs.requeue "$run" \
    --job "$job" --status "$status" --ran-for "$SECONDS"; then
    scontrol requeue "$job" && exit 0
    echo "scontrol did not requeue job $job. Submit it again: it will continue." >&2
fi
exit "$status"
