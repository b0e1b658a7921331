#!/usr/bin/env bash
# Trains the model level at full size (85M parameters, 448 pixels, bfloat16) through its three stages on one GPU, on 3,000
# generated pictures of real photographs, and inspects the result on pictures of photographs that it never saw. Each
# stage's first half sees pictures of 224 pixels. Less than twenty minutes on an H200, all in all.
#
#   scripts/full_size.sh [--out DIR] [--photos PLACE]... [--bin DIR] [--seed N]
#
#   --out DIR       folder to write, default ./full_size
#   --photos PLACE  photographs: a folder, a file, or packed ones (pack_dataset --photos); default Debian's mate-backgrounds
#   --bin DIR       programs that are built already; else the preset cuda is built
#   --seed N        of pictures, split of the photographs and weights, default 0
set -euo pipefail
caller=$PWD
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

out=full_size
photos=()
bin=
seed=0
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    --photos) photos+=("$(cd "$caller" && realpath "${2:?--photos needs a place}")"); shift 2 ;;
    --bin) bin=$(cd "$caller" && realpath "${2:?--bin needs a folder}"); shift 2 ;;
    --seed) seed=${2:?--seed needs a number}; shift 2 ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$root/scripts/full_size.sh"; exit 0 ;;
    *) fail "expected --out DIR, --photos PLACE, --bin DIR or --seed N, got $1" ;;
  esac
done
out=$(cd "$caller" && mkdir -p "$out" && cd "$out" && pwd) || fail "--out: cannot make the folder $out"
if [ ${#photos[@]} -eq 0 ]; then
  need_debian_photos
  photos=("${debian_photos[@]}")
fi
if [ -z "$bin" ]; then
  cmake --preset cuda || fail "CMake could not configure the preset cuda; the reason stands above"
  cmake --build --preset cuda --parallel "$(compile_jobs)" --target make_dataset train_model_level_moe inspect ||
    fail "the build failed; the first error stands above"
  bin=$root/build/cuda/bin
fi

begun=$SECONDS
step() {
  local name=$1 start=$SECONDS
  shift
  headline "$name"
  "$@"
  echo "$name: $(duration $((SECONDS - start)))" | tee -a "$out/times.txt"
}
rm -f "$out/times.txt"

step "data set" "$bin/make_dataset" --packed --output "$out/data" --photos "${photos[@]}" --test-photos 4 \
  --train 2400 --validation 200 --test 400 --size 448 --difficulty 0.05 --seed "$seed"
training=(--data-root "$out/data" --device cuda --seed "$seed" --checkpoint-dir "$out/checkpoints" --img-size 448
          --small-size 224 --batch-size 12 --beta2 0.98 --weight-decay 0.05 --muon-ratio 10 --muon-iterations 3
          --responsibility-temperature 0.5 --bias-rate 0.005)
step "stage 1, the experts" "$bin/train_model_level_moe" --stage 1 "${training[@]}" --epochs 12 --lr 1e-3 --answer-weight 1
step "stage 2, the router" "$bin/train_model_level_moe" --stage 2 "${training[@]}" --epochs 2 --lr 1e-3 --answer-weight 0 \
  --router-warmup-epochs 0 --load-experts-from "$out/checkpoints/expert_all_best.safetensors"
step "stage 3, everything" "$bin/train_model_level_moe" --stage 3 "${training[@]}" --epochs 4 --lr 2e-4 --answer-weight 0.5 \
  --load-experts-from "$out/checkpoints/router_best.safetensors"
step "test" "$bin/inspect" --checkpoint "$out/checkpoints/ensemble_best.safetensors" --data-root "$out/data" \
  --output "$out" --seed "$seed" --device cuda
echo "all: $(duration $((SECONDS - begun)))" | tee -a "$out/times.txt"
