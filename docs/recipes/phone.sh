#!/bin/sh
# Run the ExecuTorch programs of a bundle on an Android phone by adb, in turn, and keep what the runner prints.
#
#     sh phone.sh BUNDLE EXECUTOR_RUNNER OUT [ROUNDS] [MASK]
#     sh phone.sh phone ./executor_runner phone-times 5 80
#
# EXECUTOR_RUNNER is ExecuTorch's own program, built with the Android NDK. MASK is that of taskset, in hexadecimal: 80 is
# core 7 alone. OUT gets one text file for each program and round. effbench does not read them: they are no run.
set -eu

if [ $# -lt 3 ] || [ ! -f "$1/bundle.json" ]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0" >&2
    exit 2
fi
bundle=$1 runner=$2 out=$3 rounds=${4:-5} mask=${5:-80}
on_phone=/data/local/tmp/effbench

mkdir -p "$out"
adb shell "mkdir -p $on_phone" < /dev/null
adb push "$runner" "$on_phone/executor_runner" < /dev/null
adb shell "chmod +x $on_phone/executor_runner" < /dev/null
for program in "$bundle"/*-executorch/model.pte; do
    cell=$(basename "$(dirname "$program")")
    adb push "$program" "$on_phone/$cell.pte" < /dev/null
done
# All programs once, then all again: what changes on the phone meanwhile meets each of them.
round=1
while [ "$round" -le "$rounds" ]; do
    for program in "$bundle"/*-executorch/model.pte; do
        cell=$(basename "$(dirname "$program")")
        adb shell "cd $on_phone && taskset $mask ./executor_runner --model_path $cell.pte --num_executions 50" \
            < /dev/null > "$out/$cell-$round.txt" 2>&1
    done
    round=$((round + 1))
done
