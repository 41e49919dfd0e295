#!/usr/bin/env bash
# Make the environment in .venv, or add what it lacks. Safe to run again; what is there already is kept.
#   scripts/setup.sh train    what `make train` needs
#   scripts/setup.sh test     besides: the tests' tools, DALI and FFCV
#   PYTHON        the interpreter (default: python3)
#   TORCH         cpu or cuda: which build of torch (default: cuda where NVIDIA's driver is)
#   TORCH_INDEX   where builds of torch for the CPU lie, for a mirror
set -euo pipefail
unset CDPATH
cd "$(dirname "$0")/.."

stage=${1:-train}
python=${PYTHON:-python3}
index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
pip=(.venv/bin/python -m pip install -q)

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 2; }

check_python() {
    command -v "$python" >/dev/null ||
        die "no $python here; install Python 3.10 to 3.13, or name it: make PYTHON=python3.12"
    "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
        die "$("$python" --version) is not supported; name Python 3.10 to 3.13: make PYTHON=python3.12"
    [ -e .venv/bin/python ] || "$python" -c 'import ensurepip' 2>/dev/null ||
        "$python" -m pip --version >/dev/null 2>&1 ||
        die "$python has neither venv nor pip here; on Debian and Ubuntu, type: sudo apt-get install python3-venv"
}

# The driver's own traces, since nvidia-smi is a package that may be missing. The last two are Windows' driver in WSL.
have_gpu() {
    [ -e /proc/driver/nvidia/version ] || [ -e /dev/nvidiactl ] ||
        { [ -e /dev/dxg ] && [ -e /usr/lib/wsl/lib/libcuda.so.1 ]; }
}

choose_torch() {
    case ${TORCH:-} in
        cpu | cuda) torch=$TORCH; say "torch for ${torch/cuda/CUDA}, as TORCH says" ;;
        '') if [ "$(uname -s)" != Linux ]; then
                torch=cpu; say "torch for the CPU and, on a Mac, for its GPU"
            elif have_gpu; then
                torch=cuda; say "NVIDIA's driver is here: torch for CUDA (TORCH=cpu make chooses the small one)"
            else
                torch=cpu; say "no NVIDIA driver here: torch for the CPU (TORCH=cuda make chooses the other)"
            fi ;;
        *) die "TORCH=$TORCH is neither cpu nor cuda" ;;
    esac
}

# g++ and Python's headers: torch.compile and Triton build with them. The others: FFCV's build.
missing_packages() {
    local name packages=(g++ python3-dev)
    [ "$stage" = train ] || packages+=(pkg-config libopencv-dev libturbojpeg0-dev)
    for name in "${packages[@]}"; do
        dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'install ok installed' || printf '%s ' "$name"
    done
}

install_system_packages() {
    local missing as_root=''
    if ! command -v dpkg-query >/dev/null; then
        say "no apt here: install a C++ compiler for torch.compile, and OpenCV and libturbojpeg for FFCV, yourself"
        return
    fi
    missing=$(missing_packages)
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ]; then
        if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
            as_root=sudo
        else
            say "for torch.compile and FFCV, type: sudo apt-get install $missing"
            return
        fi
    fi
    say "installing system packages, a minute or two: $missing"
    # shellcheck disable=SC2086  # lists of words, to be split
    if ! { $as_root apt-get update -qq && $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $missing >/dev/null; }; then
        say "that failed; for torch.compile and FFCV, type: sudo apt-get install $missing"
    fi
}

make_virtual_environment() {
    [ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null && return
    say "making .venv with $("$python" --version)"
    rm -rf .venv
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -m venv .venv
    else
        # Debian splits venv off Python; virtualenv from pip does the same without root.
        PIP_ROOT_USER_ACTION=ignore "$python" -m pip install -q --target .virtualenv virtualenv
        PYTHONPATH=.virtualenv "$python" -m virtualenv -q .venv
    fi
}

# What is there already needs no network.
have() {
    [ ".venv/.$1" -nt pyproject.toml ] && [ ".venv/.$1" -nt scripts/setup.sh ]
}

check_room() {  # in GB, with pip's own files while it installs
    local free
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1000000) }')
    [ "$free" -ge "$1" ] || die "$2 takes up to $1 GB on the disk, $(pwd) has $free GB free; make room"
}

index_answers() {
    .venv/bin/python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=5)' "$index" \
        2>/dev/null
}

# PyPI has the CPU's build for macOS alone; on Linux its torch brings 4 GB of libraries for CUDA.
install_torch() {
    local there again=()
    there=$(cat .venv/.torch 2>/dev/null || true)
    [ "$there" != "$torch" ] || return 0
    # To pip one build is as good as the other. What the new one depends on comes with the whole project.
    [ -z "$there" ] || again=(--force-reinstall --no-deps)
    if [ "$torch" = cpu ] && [ "$(uname -s)" = Linux ]; then
        if index_answers; then
            check_room 2 "torch for the CPU"
            say "installing torch for the CPU: 0.2 GB to download, 0.8 GB on the disk; a minute"
            "${pip[@]}" --index-url "$index" ${again[@]+"${again[@]}"} torch torchvision
            echo cpu >.venv/.torch
            return
        fi
        say "$index can't be reached: PyPI's torch does as well, and is 5 GB larger"
        torch=cuda
        [ "$there" != "$torch" ] || return 0
    fi
    if [ "$(uname -s)" = Linux ]; then
        check_room 8 "torch for CUDA"
        say "installing torch for CUDA: 3 GB to download, 6 GB on the disk; minutes"
    else
        say "installing torch: 0.1 GB to download, 0.5 GB on the disk; a minute"
    fi
    "${pip[@]}" ${again[@]+"${again[@]}"} torch torchvision
    echo "$torch" >.venv/.torch
}

install_train() {
    choose_torch
    install_torch
    say "installing fast-train and what it needs: 0.1 GB; half a minute"
    "${pip[@]}" -e .
}

install_test() {
    check_room 4 "what the tests need"
    say "installing what the tests need, DALI and Triton among it: 1 GB to download, 2 GB on the disk; minutes"
    "${pip[@]}" -e '.[dev]'
    # Nothing else depends on DALI and FFCV, so a machine without a wheel, or that can't build FFCV, goes without.
    "${pip[@]}" -e '.[dali]' || say "DALI could not be installed; everything else works"
}

install_ffcv() {
    # The Makefile asks the same, and runs this script again once the answer is yes and .venv/.ffcv is not there.
    if ! pkg-config --exists opencv4 libturbojpeg 2>/dev/null; then
        say "without FFCV: pkg-config is missing or finds no OpenCV or libturbojpeg; make builds it once they are there"
        return
    fi
    [ -e .venv/.ffcv ] || say "building FFCV: a minute"
    "${pip[@]}" -e '.[ffcv]' ||
        say "FFCV could not be built; everything else works. To try again: .venv/bin/python -m pip install -e '.[ffcv]'"
    touch .venv/.ffcv
}

check_python
install_system_packages
make_virtual_environment
if [ -n "${TORCH:-}" ] || ! have train; then
    install_train
    touch .venv/.train
fi
if [ "$stage" = test ]; then
    have test || install_test
    install_ffcv
    touch .venv/.test
fi
say "ready: prep-data, fast-train, fast-predict, fast-export, bench-throughput and bench-study are in .venv/bin; source .venv/bin/activate finds them"
