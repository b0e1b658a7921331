#!/usr/bin/env bash
# Trains the demo three times, with a stage 1 twice as long, and with other photographs, pictures and initial weights
# each time, and prints a table of what the mixture, its experts and other ways to combine them reach on unseen
# photographs. Beside the demo's three stages a fourth run trains the best expert of stage 1 (on validation) alone, for
# as many steps as stages 2 and 3 take. Unlike the demo it trains in one replica. A seed whose summary.json is there is
# kept, whatever made it: give another --out after a change.
#
#   scripts/three_seeds.sh [--out DIR] [--device auto|cpu|cuda] [--together]
#
#   --out DIR      folder to write, default ./three_seeds
#   --device NAME  where to train, default auto; a GPU trains in float32, as the CPU does
#   --together     the seeds side by side, each with one thread and its words in DIR/seedN.log
set -euo pipefail
caller=$PWD
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

out=three_seeds
together=
device=auto
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    --device) device=${2:?--device needs auto, cpu or cuda}; shift 2 ;;
    --together) together=yes; shift ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$root/scripts/three_seeds.sh"; exit 0 ;;
    *) fail "expected --out DIR, --device NAME or --together, got $1" ;;
  esac
done
out=$(cd "$caller" && mkdir -p "$out" && cd "$out" && pwd) || fail "--out: cannot make the folder $out"

build make_dataset train_model_level_moe inspect
bin=$root/build/cpu/bin
photos=("${debian_photos[@]}")
need_debian_photos
difficulty=0.05
epochs=16  # of stage 1: twice the demo's, which has to end in minutes on two cores

# The index of the expert that is best on validation where the mean of all experts is.
best_expert() {
  python3 - "$1" <<'PYTHON'
import json, sys
rows = [json.loads(line)["val_iou"] for line in open(sys.argv[1])]
experts = [[v for k, v in row.items() if k.startswith("expert_")] for row in rows]
best = max(experts, key=sum)
print(best.index(max(best)))
PYTHON
}

run_seed() {
  local seed=$1 folder=$out/seed$1 expert
  local data=$folder/data checkpoints=$folder/checkpoints
  [ -e "$folder/summary.json" ] && return
  headline "Seed $seed"
  [ -d "$data" ] || "$bin/make_dataset" --output "$data" --photos "${photos[@]}" --test-photos 4 --train 400 \
    --validation 160 --test 800 --size 96 --difficulty "$difficulty" --seed "$seed"
  local training=(--preset demo --data-root "$data" --photos "${photos[@]}" --fresh 1200 --difficulty "$difficulty"
                  --device "$device" --no-amp)
  "$bin/train_model_level_moe" --stage 1 "${training[@]}" --epochs "$epochs" --seed "$seed" \
    --checkpoint-dir "$checkpoints"
  "$bin/train_model_level_moe" --stage 2 "${training[@]}" --seed "$seed" --checkpoint-dir "$checkpoints" \
    --load-experts-from "$checkpoints/expert_all_best.safetensors"
  "$bin/train_model_level_moe" --stage 3 "${training[@]}" --seed "$seed" --checkpoint-dir "$checkpoints" \
    --load-experts-from "$checkpoints/router_best.safetensors"
  expert=$(best_expert "$checkpoints/metrics_stage1.jsonl")
  # Another seed, so that it too sees pictures that stage 1 did not.
  "$bin/train_model_level_moe" --stage 1 --expert-id "$expert" --train-backbone --fixed-statistics --epochs 4 --lr 3e-4 \
    "${training[@]}" --seed $((seed + 1000)) --checkpoint-dir "$checkpoints/alone" \
    --load-experts-from "$checkpoints/expert_all_best.safetensors"
  "$bin/inspect" --checkpoint "$checkpoints/ensemble_best.safetensors" --data-root "$data" --output "$folder" \
    --seed "$seed" --device "$device" --alone "$checkpoints/alone/expert_${expert}_best.safetensors" \
    --alone-expert "$expert"
}

if [ -n "$together" ]; then
  jobs=()
  for seed in 0 1 2; do
    (export OMP_NUM_THREADS=1; run_seed "$seed") >"$out/seed$seed.log" 2>&1 &
    jobs+=($!)
  done
  for seed in 0 1 2; do wait "${jobs[seed]}" || fail "seed $seed failed; $out/seed$seed.log says why"; done
else
  for seed in 0 1 2; do run_seed "$seed"; done
fi
headline "Three seeds"
python3 scripts/reporting/three_seeds.py "$out"/seed{0,1,2}/summary.json | tee "$out/table.md"
