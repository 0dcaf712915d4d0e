#!/bin/sh
# Measure a study on one node of a Slurm cluster: one launch a job, one job at a time, all on the same node.
#
#     sh slurm.sh NODE DIR LAUNCHES STUDY [OPTION OF run]...
#     sh slurm.sh node17 runs/node17 5 g2_groups --threads 4
#
# The same command goes on with a run that has launches left. A complete run measures nothing.
set -eu

if [ $# -lt 4 ]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0" >&2
    exit 2
fi
node=$1 dir=$2 launches=$3
shift 3
job=$(dirname "$0")/slurm.sbatch

first=$(sbatch --parsable --nodelist="$node" "$job" "$dir" "$@" --launches "$launches")
echo "first launch: job $first"
if [ "$launches" -gt 1 ]; then
    # %1: one job of the array at a time. They begin only if the first launch succeeded.
    others=$(sbatch --parsable --nodelist="$node" --array="2-$launches%1" --dependency="afterok:${first%%;*}" \
        --kill-on-invalid-dep=yes "$job" "$dir" "$@" --launches "$launches")
    echo "the other launches: array $others"
fi
