#!/usr/bin/env bash
# Make the environment in .venv: system packages where that is allowed, then the Python packages.
# PYTHON chooses the interpreter (default: python3). Safe to run again; what is there already is kept.
set -euo pipefail
unset CDPATH
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
# g++ and Python's headers: torch.compile and Triton build with them. The others: FFCV's build.
packages=(g++ python3-dev pkg-config libopencv-dev libturbojpeg0-dev)

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 2; }

command -v "$python" >/dev/null ||
    die "no $python here; install Python 3.10 to 3.13, or name it: make PYTHON=python3.12"
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
    die "$("$python" --version) is not supported; name Python 3.10 to 3.13: make PYTHON=python3.12"

missing_packages() {
    local name
    for name in "${packages[@]}"; do
        dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'install ok installed' || printf '%s ' "$name"
    done
}

install_system_packages() {
    local missing as_root=()
    if ! command -v dpkg-query >/dev/null; then
        say "no apt here; FFCV and torch.compile need a C++ compiler and OpenCV"
        return
    fi
    missing=$(missing_packages)
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ]; then
        if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
            as_root=(sudo)
        else
            say "for torch.compile and FFCV, type: sudo apt-get install $missing"
            return
        fi
    fi
    say "installing system packages: $missing"
    # shellcheck disable=SC2086  # a list of names, to be split
    if ! { "${as_root[@]}" apt-get update -qq && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
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
        "$python" -m pip install -q --target .virtualenv virtualenv
        PYTHONPATH=.virtualenv "$python" -m virtualenv -q .venv
    fi
}

# FFCV alone may be missing: what is there already needs no network then.
have_python_packages() {
    [ .venv/.installed -nt pyproject.toml ] && [ .venv/.installed -nt scripts/setup.sh ]
}

install_python_packages() {
    say "installing the Python packages (torch is large: minutes on a first run)"
    .venv/bin/python -m pip install -q -e '.[dev]'
    # Nothing else depends on DALI and FFCV, so a machine without a wheel, or that can't build FFCV, goes without.
    .venv/bin/python -m pip install -q -e '.[dali]' || say "DALI could not be installed; everything else works"
}

install_ffcv() {
    # The Makefile asks the same, and runs this script again once the answer is yes and .venv/.ffcv is not there.
    if ! pkg-config --exists opencv4 libturbojpeg 2>/dev/null; then
        say "without FFCV: pkg-config is missing or finds no OpenCV or libturbojpeg; make builds it once they are there"
        return
    fi
    .venv/bin/python -m pip install -q -e '.[ffcv]' ||
        say "FFCV could not be built; everything else works. To try again: .venv/bin/python -m pip install -e '.[ffcv]'"
    touch .venv/.ffcv
}

install_system_packages
make_virtual_environment
have_python_packages || install_python_packages
install_ffcv
touch .venv/.installed
say "ready: prep-data, fast-train, bench-throughput and bench-study are in .venv/bin; source .venv/bin/activate finds them"
