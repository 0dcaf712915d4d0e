#!/bin/sh
# Measure a bundle on another machine by ssh, launch by launch, with a copy of the run here after each.
#
#     sh ssh.sh MACHINE BUNDLE OUT [OPTION OF run-bundle]...
#     sh ssh.sh pi@pi5-a g2 fleet/g2/pi5-a --launches 5 --threads 4
#
# The machine has effbench and the requirements of the bundle (docs/bundles.md). The run lies there in a folder under
# effbench-runs, and OUT/run.jsonl is a copy of it. If anything stops the script, the same command goes on. It ends with
# the exit code of `effbench run-bundle`: 0 the run is complete, 4 others disturbed it. 255 is a failure of ssh.
#
#     EFFBENCH=env/bin/effbench    the command there, relative to the home folder
#     LOCK=/tmp/effbench.lock      a file there that is locked during each launch: this is that of a fleet's worker
set -eu

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0" >&2
    exit 2
}
[ $# -ge 3 ] && [ -f "$2/bundle.json" ] || usage
machine=$1 bundle=${2%/} out=$3
shift 3

quote() { # for the shell of the machine
    for word in "$@"; do printf "'%s' " "$(printf %s "$word" | sed "s/'/'\\\\''/g")"; done
}
there() { # run one command on the machine; end where ssh itself fails
    status=0
    ssh -n "$machine" "$1" || status=$?
    if [ "$status" = 255 ]; then
        echo "ssh.sh: no connection to $machine; the same command goes on later" >&2
        exit 255
    fi
    return "$status"
}

mkdir -p "$out"
# One folder there for each folder here.
name=$(printf '%s:%s' "$(uname -n)" "$(cd "$out" && pwd)" | cksum | cut -d ' ' -f 1)
folder=effbench-runs/$name
effbench=$(quote "${EFFBENCH:-effbench}")
if [ -n "${LOCK:-}" ]; then
    lock=$(quote "$LOCK")
    # Opened for reading alone: in /tmp the kernel lets nobody open the file of another user with a wish to create it.
    before="[ -e $lock ] || : > $lock; exec 9< $lock && flock 9 && "
fi

pull() { # append what the machine's file grew by, in whole lines
    touch "$out/run.jsonl"
    have=$(($(wc -c < "$out/run.jsonl")))
    same=$(there "head -c $have $folder/run/run.jsonl | cksum")
    if [ "$same" != "$(cksum < "$out/run.jsonl")" ]; then
        echo "ssh.sh: $out/run.jsonl is not the beginning of the run on $machine; name another folder" >&2
        exit 2
    fi
    there "tail -c +$((have + 1)) $folder/run/run.jsonl" > "$out/.grown"
    if [ -n "$(tail -c 1 "$out/.grown")" ]; then
        sed '$d' "$out/.grown" >> "$out/run.jsonl"
    else
        cat "$out/.grown" >> "$out/run.jsonl"
    fi
    rm "$out/.grown"
}

if ! there "test -d $folder/bundle"; then
    there "mkdir -p $folder && rm -rf $folder/copying"
    scp -q -r "$bundle" "$machine:$folder/copying"
    there "mv $folder/copying $folder/bundle"
fi
while :; do
    if there "test -s $folder/run/run.jsonl"; then
        pull
        words="--resume $folder/run"
    elif [ -s "$out/run.jsonl" ]; then
        echo "ssh.sh: $machine has not the run of $out any more; name another folder" >&2
        exit 2
    else
        words="--out $folder/run $(quote "$@")"
    fi
    ended=0
    there "${before:-}$effbench run-bundle $folder/bundle $words --now 1" || ended=$?
    if there "test -s $folder/run/run.jsonl"; then pull; fi
    [ "$ended" = 5 ] || exit "$ended"
done
