#!/bin/sh
# Every path of a device, checked, and ResNet-50 at 224 pixels measured on it: one command of at
# most eight minutes, set-up included, on a machine that has Python, torch and this checkout.
#
#     benchmarks/gpu.sh RESULTS                   # results go to RESULTS/gpu.json
#     benchmarks/gpu.sh --wheels FOLDER RESULTS   # what is missing is installed from FOLDER
#     benchmarks/gpu.sh --toy RESULTS             # a toy size, on a CPU
#
# PYTHON names another interpreter than python3.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
wheels= toy= results=
while [ $# -gt 0 ]; do
    case $1 in
        --toy) toy=--toy ;;
        --wheels) shift; wheels=${1:?--wheels needs a folder} ;;
        -*) echo "gpu.sh: unknown flag $1" >&2; exit 2 ;;
        *) results=$1 ;;
    esac
    shift
done
[ -n "$results" ] || { echo "usage: benchmarks/gpu.sh [--toy] [--wheels FOLDER] RESULTS" >&2; exit 2; }
mkdir -p "$results"
begun=$(date +%s)
PYTHONPATH=$root/src:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}
# Compiled loops and kernels are kept with the results, where nothing else may be written.
NUMBA_CACHE_DIR=${NUMBA_CACHE_DIR:-$results/numba}
export PYTHONPATH NUMBA_CACHE_DIR

missing=$("$python" "$root/benchmarks/gpu.py" --missing) || {
    echo "gpu.sh: $python cannot run benchmarks/gpu.py (Python 3.11 or later is wanted)" >&2
    exit 1
}
if [ -n "$missing" ]; then
    echo "Missing packages: $missing"
    from="--timeout 5 --retries 0"
    [ -n "$wheels" ] && from="--no-index --find-links $wheels"
    # One by one: what can be had is of use though another cannot.
    for package in $missing; do
        "$python" -m pip install -q --disable-pip-version-check $from "$package" ||
            echo "gpu.sh: $package could not be installed; checks that need it will say so" >&2
    done
fi
spent=$(($(date +%s) - begun))
# The last measurement that begins may take a minute more. A toy run waits for two slow cores.
limit=390
[ -n "$toy" ] && limit=1500
exec "$python" "$root/benchmarks/gpu.py" $toy --seconds $((limit - spent)) "$results"
