#!/usr/bin/env bash
# Runs the benchmarks bench_gpu_* and prints a table for each group of cases. Results go to bench/results.
#
#   bench/run_gpu.sh build/cuda                       all of them
#   bench/run_gpu.sh build/cuda --benchmark_filter=plan
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:?"the build folder, configured with -DMOECOD_WITH_CUDA_KERNELS=ON"}
shift
commit=$(git rev-parse --short HEAD)
git diff --quiet HEAD || commit+=" and changes"
for program in "$build"/bin/bench_gpu_*; do
  result=bench/results/$(basename "${program#*bench_}").json
  "$program" --benchmark_out="$result" --benchmark_out_format=json --benchmark_context=commit="$commit" "$@"
  [ -s "$result" ] || continue # skipped, without a device
  python3 bench/gpu_table.py --trim "$result"
done
