#!/usr/bin/env bash
# Pretrains on several machines under SLURM, and queues itself again until the run has ended:
#
#     sbatch --nodes 2 --gpus-per-node 8 slurm.sh photos/ --out /shared/runs/photos
#
# What follows the script's name is given to `diptych pretrain`. --out must be reached from all
# machines. PROCESSES_PER_NODE says how many processes each machine runs: one for each GPU.
#SBATCH --job-name=diptych
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=diptych-%j.log
set -euo pipefail

saved=143 # how `diptych launch` exits when SIGTERM came and the run was saved

export PROCESSES_PER_NODE="${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}"
RENDEZVOUS_HOST="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)"
RENDEZVOUS_PORT="$((20000 + SLURM_JOB_ID % 10000))" # two jobs may share a machine
export RENDEZVOUS_HOST RENDEZVOUS_PORT
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # from SLURM 22.05 on srun takes one core otherwise

# SLURM sends USR1 to this shell alone, 300 seconds before the time limit (--signal above). The
# processes of all machines get SIGTERM and write a checkpoint at the end of the step they are in.
time_is_up=no
stop() {
    time_is_up=yes
    scancel --signal=TERM "$SLURM_JOB_ID"
}
trap stop USR1

# One launcher on each machine; it starts the others. The first machine keeps the meeting point.
# The single quotes are meant: each machine fills in its own number.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=0 bash -c '
    is_host=false
    if [ "$SLURM_NODEID" = 0 ]; then is_host=true; fi
    exec diptych launch \
        --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$PROCESSES_PER_NODE" \
        --rdzv-endpoint "$RENDEZVOUS_HOST:$RENDEZVOUS_PORT" --rdzv-id "$SLURM_JOB_ID" \
        --rdzv-conf "is_host=$is_host" \
        -- pretrain "$@"
' diptych "$@" &
step=$!

code=0
wait "$step" || code=$?
if [ "$time_is_up" = yes ]; then # the signal ended the wait, not the step
    code=0
    wait "$step" || code=$?
fi

if [ "$time_is_up" = yes ] && [ "$code" = "$saved" ]; then
    echo "The time is up and the run is saved: queued again."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
