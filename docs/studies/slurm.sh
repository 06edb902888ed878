#!/bin/bash
#SBATCH --job-name=diptych-study
#SBATCH --cpus-per-task=1
#SBATCH --mem=3G
#SBATCH --time=00:30:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --output=%x-%A-%a.log

# One line of a file of commands in each job of an array; a job that is cut goes on when it is
# given again. Called by hand it sends itself off, with as many jobs as the file has lines:
#
#     diptych study head --data /shared/cifar10 --out /shared/head --threads 1 \
#         --write-commands commands.txt
#     bash slurm.sh commands.txt
#     diptych study head --data /shared/cifar10 --out /shared/head --only-report

set -euo pipefail
commands=${1:?"usage: bash slurm.sh COMMANDS"}

if [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
    count=$(wc -l < "$commands")
    if [ "$count" -eq 0 ]; then
        echo "nothing to do: $commands has no lines"
        exit 0
    fi
    exec sbatch "--array=1-$count" "$0" "$commands"
fi

line=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$commands")
eval "exec $line"
