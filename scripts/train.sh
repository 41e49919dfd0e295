#!/usr/bin/env bash
# Prepare data and train on them: `make train`.
#   DATA        what to train on: cifar10 (default), cifar100, folder:DIR, csv:FILE, parquet:PATH, synthetic
#   SOURCE      where CIFAR comes from, if not from its own host: an archive, a folder of its batches, an address
#   PREP_ARGS   more flags for prep-data, such as --skip-bad or --size 96
#   ARGS        more flags for fast-train
# f: flags are split into words, but not taken for patterns of file names.
set -feuo pipefail
unset CDPATH
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

dataset=${DATA:-cifar10}
case $dataset in
    folder:?*)
        folder=${dataset#folder:}
        # With a slash, a folder called - is no word of cd's.
        name=$(basename -- "$(cd -P -- "$folder/" 2>/dev/null && pwd || printf '%s' "$folder")") ;;
    csv:?* | parquet:?*)
        name=$(basename -- "${dataset#*:}")
        case $dataset in csv:*) name=${name%.*} ;; *) name=${name%.parquet} ;; esac ;;
    *) name=$dataset ;;
esac
if [ "$name" = / ]; then
    echo "train: error: DATA=$dataset has no name to call the set by; name a folder below it" >&2
    exit 2
fi

# Whether other programs take three quarters of the cores' time, over a second. STAT_FILE is for the tests.
cores_are_busy() {
    local before after
    before=$(cores_time) && sleep "${SAMPLE_SECONDS:-1}" && after=$(cores_time) || return 1
    awk "BEGIN { split(\"$before\", a); split(\"$after\", b); exit !(4 * (b[1] - a[1]) <= b[2] - a[2]) }"
}

# Idle, and in all, since the machine's start.
cores_time() {
    awk '/^cpu / { for (n = 2; n <= 9; n++) all += $n; print $5 + $6, all }' "${STAT_FILE:-/proc/stat}" 2>/dev/null
}

status=0
# shellcheck disable=SC2086  # flags, to be split
prep-data --dataset "$dataset" --out "data/$name" ${SOURCE:+--source "$SOURCE"} ${PREP_ARGS:-} || status=$?
if [ "$status" = 3 ] && [ -z "${DATA:-}" ]; then
    echo "CIFAR-10 can't be downloaded here: training on the built-in synthetic set instead (DATA=folder:DIR trains on your own images)"
    name=synthetic
    prep-data --dataset synthetic --out data/synthetic
elif [ "$status" != 0 ]; then
    exit "$status"
fi

flags=${ARGS:-}
# /dev/dxg: a GPU in WSL.
if [ -z "$flags" ] && [ ! -e /dev/nvidiactl ] && [ ! -e /dev/dxg ] && cores_are_busy; then
    if grep -qs '"image_shape": "ragged"' "data/$name/manifest.json"; then
        echo "other programs keep the cores busy: training half as long (ARGS='--epochs 40' is the whole)"
        flags='--epochs 20'
    else
        echo "other programs keep the cores busy: training half as long, by recipe cpu-short (ARGS='--recipe cpu-quick' is the whole)"
        flags='--recipe cpu-short'
    fi
fi

# shellcheck disable=SC2086  # flags, to be split
exec fast-train --data "data/$name" $flags
