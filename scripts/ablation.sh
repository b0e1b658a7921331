#!/usr/bin/env bash
# The ablation of the feature-level model on generated pictures: sets up, builds, makes the demo's kind of data set,
# trains every row of examples/ablation/rows.def with several seeds and writes DIR/index.html and DIR/results.csv. Runs
# that are done are kept; one that was interrupted goes on from its last epoch.
#
#   scripts/ablation.sh [--out DIR] [FLAG...]      further flags go to the program: --seeds 5, --rows balance, --epochs 4
#
# Not --output, --data-root, --photos, --fresh and --difficulty, which the script gives; for other data run the program
# itself and scripts/ablation_page.py.
set -euo pipefail
caller=$PWD
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

out=ablation
flags=()
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$root/scripts/ablation.sh"; exit 0 ;;
    *) flags+=("$1"); shift ;;
  esac
done
out=$(cd "$caller" && mkdir -p "$out" && cd "$out" && pwd) || fail "--out: cannot make the folder $out"

headline "Setting up and building"
scripts/setup.sh
build make_dataset ablation
bin=$root/build/cpu/bin
photos=("${debian_photos[@]}")
need_debian_photos

headline "Making the data set"
[ -d "$out/data" ] || "$bin/make_dataset" --output "$out/data" --photos "${photos[@]}" --test-photos 4 --train 400 \
  --validation 160 --test 400 --size 96 --difficulty 0.05 --seed 0

headline "Training"
failed=
"$bin/ablation" --output "$out" --data-root "$out/data" --photos "${photos[@]}" --fresh 1200 --difficulty 0.05 \
  "${flags[@]}" || failed=yes
[ -e "$out/results.csv" ] || fail "no run succeeded; the reason stands above"
python3 scripts/ablation_page.py "$out"
[ -z "$failed" ] || fail "some runs failed and are not on the page; the reason stands above"
