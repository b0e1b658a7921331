#!/usr/bin/env bash
# Sets up, builds everything and runs every test. Arguments go to ctest, as in: scripts/test.sh -R moe
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

start=$SECONDS
headline "Setting up"
scripts/setup.sh --tests
ready=$SECONDS
headline "Building"
build
built=$SECONDS
headline "Testing (set-up took $(duration $((ready - start))), the build $(duration $((built - ready))))"
# Last, so that the output ends with ctest's own summary and its exit status is that of this script.
ctest --preset cpu --parallel "$(nproc)" --timeout 900 --no-tests=error "$@"
