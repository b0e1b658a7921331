#!/usr/bin/env bash
# Installs what is missing to build moecod and to run its demo, on Debian 12 or Ubuntu 24.04; with --tests also what
# the tests compare against. Does nothing, and touches no network, where everything is there.
#
#   scripts/setup.sh [--tests]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

requirements=(scripts/requirements.txt)
case "${1:-}" in
  "") ;;
  --tests) requirements+=(scripts/requirements-test.txt) ;;
  *) fail "expected nothing or --tests, got $1" ;;
esac

# A Debian package a line, and what shows that it is there without being a package: a program, a header or a folder.
packages="
  g++                       program:g++
  ccache                    program:ccache
  python3                   program:python3
  python3-venv              module:ensurepip
  libboost-dev              header:boost/hana.hpp
  libopencv-core-dev        header:opencv2/core.hpp
  libopencv-imgproc-dev     header:opencv2/imgproc.hpp
  libopencv-imgcodecs-dev   header:opencv2/imgcodecs.hpp
  libcli11-dev              header:CLI/CLI.hpp
  nlohmann-json3-dev        header:nlohmann/json.hpp
  libgtest-dev              header:gtest/gtest.h
  libgmock-dev              header:gmock/gmock.h
  libbenchmark-dev          header:benchmark/benchmark.h
  mate-backgrounds          folder:/usr/share/backgrounds/mate/nature
"
# Several processes on one machine's CPUs, as the tests run the trainers.
test_packages="
  libopenmpi-dev            program:mpicxx
  openmpi-bin               program:mpirun
"

[ "${1:-}" != --tests ] || packages+=$test_packages

present() {
  case "$1" in
    program:*) command -v "${1#*:}" >/dev/null ;;
    module:*) python3 -c "import ${1#*:}" 2>/dev/null ;;
    header:*) command -v g++ >/dev/null &&
      g++ -I/usr/include/opencv4 -E -x c++ - >/dev/null 2>&1 <<<"
        #if !__has_include(<${1#*:}>)
        #error missing
        #endif" ;;
    folder:*) [ -d "${1#*:}" ] ;;
  esac
}

install_packages() {
  local installed missing="" package probe apt
  installed=" $(dpkg-query -W -f='${db:Status-Status}:${binary:Package}\n' 2>/dev/null |
    sed -n 's/^installed:\([^:]*\).*/\1/p' | tr '\n' ' ')"
  while read -r package probe; do
    [ -n "$package" ] || continue
    [[ "$installed" == *" $package "* ]] || present "$probe" || missing+=" $package"
  done <<<"$packages"
  [ -n "$missing" ] || return 0

  local by_hand="missing Debian packages:$missing. Install them with: apt-get install$missing"
  command -v apt-get >/dev/null || fail "$by_hand (no apt-get here: install what they hold in another way)"
  apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120)
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "$by_hand (needs root, and there is no sudo)"
    apt=(sudo "${apt[@]}")
  fi
  headline "Installing Debian packages:$missing"
  "${apt[@]}" update || fail "apt-get update failed, so $by_hand"
  # shellcheck disable=SC2086  # a list of words
  "${apt[@]}" install -y --no-install-recommends $missing ||
    fail "apt-get could not install them: $by_hand (on Ubuntu they are in 'universe')"
}

# Names every pinned wheel that is not installed in .venv at that very version.
missing_wheels() {
  .venv/bin/python - "${requirements[@]}" <<'PYTHON'
import importlib.metadata
import pathlib
import sys

for path in sys.argv[1:]:
    for line in pathlib.Path(path).read_text().splitlines():
        pin = line.split("#")[0].strip()
        if not pin:
            continue
        name, version = pin.split("==")
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found is None or found.split("+")[0] != version:
            print(pin)
PYTHON
}

make_environment() {
  if [ -x .venv/bin/python ] && .venv/bin/python -c "" 2>/dev/null; then return; fi
  local candidate chosen=""
  for candidate in python3 /usr/bin/python3; do
    if "$candidate" -c "import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" 2>/dev/null; then
      chosen=$candidate
      break
    fi
  done
  [ -n "$chosen" ] || fail "no Python 3.11 to 3.13 with venv (apt-get install python3 python3-venv)"
  headline "Making .venv with $("$chosen" --version)"
  "$chosen" -m venv --clear .venv || fail "$chosen could not make .venv (apt-get install python3-venv)"
}

install_wheels() {
  local missing stamp checksum free files=() path
  stamp=.venv/.moecod-${#requirements[@]}
  checksum=$(cat "${requirements[@]}" | sha256sum)
  missing=$(missing_wheels)
  if [ -n "$missing" ]; then
    free=$(df --output=avail -m .venv | tail -1)
    if [[ "$missing" == *torch==* ]] && [ "$free" -lt 8000 ]; then
      fail "PyTorch's wheels take 8 GB in $root/.venv, and only $free MB are free there"
    fi
    # shellcheck disable=SC2086  # a list of words
    headline "Installing wheels into .venv:" $missing
    for path in "${requirements[@]}"; do files+=(-r "$path"); done
    .venv/bin/python -m pip install --disable-pip-version-check "${files[@]}" ||
      fail "pip could not install ${missing//$'\n'/ } (needs https://pypi.org, or a mirror named by PIP_INDEX_URL)"
  fi
  if [ "$(cat "$stamp" 2>/dev/null)" != "$checksum" ]; then
    .venv/bin/python -W ignore -c "import torch; torch.ones(1)" ||
      fail "torch is installed in .venv but cannot be imported; remove $root/.venv and run this again"
    echo "$checksum" >"$stamp"
  fi
}

install_packages
make_environment
install_wheels
