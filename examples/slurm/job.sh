#!/bin/bash
# Train for longer than one job may last: two minutes before its time limit Slurm sends SIGUSR1,
# the training saves itself in the middle of an epoch and ends, and the job puts itself back into
# the queue. Submit with:  sbatch job.sh
#
#SBATCH --job-name=sbi
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --cpus-per-task=1

set -u
export SBI_IGNITE_CHECKPOINT__DIRECTORY="${SBI_IGNITE_CHECKPOINT__DIRECTORY:-runs/exp1}"
PYTHON="${PYTHON:-python}"
SCRIPT="${SCRIPT:-train.py}"

signalled=""
forward() {
    signalled="$1"
    kill -s "$1" "$training" 2>/dev/null
}

# "B:" sends the signal to this shell alone, which hands it on. The training runs in the
# background, because bash runs a trap only when no command in the foreground keeps it waiting.
"$PYTHON" "$SCRIPT" &
training=$!
trap 'forward USR1' USR1
trap 'forward TERM' TERM

# `wait` returns early whenever a trap has run: wait until the training is really over.
while true; do
    wait "$training"
    status=$?
    kill -0 "$training" 2>/dev/null || break
done

# 128 + 10: the training ended because of SIGUSR1, saved and resumable. 0: it was complete in time.
if [ "$signalled" = "USR1" ] && [ "$status" -eq 138 ]; then
    echo "Time is nearly up: job ${SLURM_JOB_ID} goes back into the queue and will continue."
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
