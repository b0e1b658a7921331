# shellcheck shell=bash
# Shared by the tests of this folder; to be sourced. Moves to a folder that goes away at the end.

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit

fail() { echo "$(basename "$0" .sh): $*" >&2; exit 1; }
# refuses TEXT COMMAND...: the command must fail and say TEXT.
refuses() {
  local text=$1; shift
  if "$@" > refused.log 2>&1; then cat refused.log >&2; fail "should have been refused: $*"; fi
  grep -qF -- "$text" refused.log || { cat refused.log >&2; fail "expected '$text' from: $*"; }
}
