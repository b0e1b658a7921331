#!/usr/bin/env bash
# Runs the benchmarks bench_gpu_* and prints a table for each group of cases. Without further options results go to
# bench/results; with some, which may leave cases out, they are printed only.
#
#   bench/run_gpu.sh build/cuda                       all of them
#   bench/run_gpu.sh build/cuda --only gpu_experts    one of them, to bench/results
#   bench/run_gpu.sh build/cuda --benchmark_filter=plan
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:?"the build folder, configured with -DMOECOD_WITH_CUDA_KERNELS=ON"}
shift
only=gpu_*
if [ "${1:-}" = --only ]; then
  only=${2:?"--only needs the name of a program, without bench_"}
  shift 2
fi
commit=$(git rev-parse --short HEAD)
git diff --quiet HEAD || commit+=" and changes"
result=$(mktemp)
trap 'rm -f "$result"' EXIT
for program in "$build"/bin/bench_$only; do
  if [ ! -x "$program" ]; then
    echo "no $program: configure with -DMOECOD_WITH_CUDA_KERNELS=ON, and build it" >&2
    exit 1
  fi
  : > "$result"
  "$program" --benchmark_out="$result" --benchmark_out_format=json --benchmark_context=commit="$commit" "$@"
  [ -s "$result" ] || continue # no device, or no such case
  python3 bench/gpu_table.py --trim "$result"
  [ $# -gt 0 ] || cp "$result" "bench/results/$(basename "${program#*bench_}").json"
done
