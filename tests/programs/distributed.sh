#!/usr/bin/env bash
# distributed.sh BIN MPIRUN...: the trainers as two processes on CPUs: resumed, told to stop, killed, and started wrongly.
set -euo pipefail
bin=$1
shift
mpirun=("$@")
. "$(dirname "${BASH_SOURCE[0]}")/checks.sh"
same() { cmp -s "$1" "$2" || fail "$1 and $2 differ"; }
same_log() { diff <(sed 's/"seconds_per_step":[^,}]*//' "$1") <(sed 's/"seconds_per_step":[^,}]*//' "$2") || fail "$1 and $2 differ"; }
# quietly COMMAND...: must succeed; says what it printed where it does not.
quietly() { "$@" > quiet.log 2>&1 || { cat quiet.log >&2; fail "failed: $*"; }; }
# a_rank FOLDER: the process number of the last rank that trains into a folder.
a_rank() { pgrep -f -- "^$bin/train_.*--checkpoint-dir $1( |\$)" | tail -1; }

"$bin/make_dataset" --output data --procedural 9 --train 16 --validation 7 --test 4 --size 64 --seed 4 > /dev/null
train=("$bin/train_model_level_moe" --preset demo --data-root data --seed 2 --small-size 0 --replicas 1 --img-size 64
       --sinet-width 8 --pranet-width 8 --zoomnet-width 8 --ujsc-width 8 --router-width 8 --batch-size 2)
ranks=("${mpirun[@]}" -n 2 "${train[@]}" --use-ddp)

# Stage 1 with averages and batch statistics of both ranks: stopped and resumed it is the unbroken run, bit for bit; each
# epoch has one line, and each kind of best weights is there.
quietly "${ranks[@]}" --stage 1 --epochs 2 --use-ema --sync-bn --checkpoint-dir whole
quietly "${ranks[@]}" --stage 1 --epochs 2 --use-ema --sync-bn --checkpoint-dir parts --stop-after 1
quietly "${ranks[@]}" --stage 1 --epochs 2 --use-ema --sync-bn --checkpoint-dir parts --resume-from parts/last_stage1
same whole/last_stage1.safetensors parts/last_stage1.safetensors
same whole/expert_all_best.safetensors parts/expert_all_best.safetensors
same_log whole/metrics_stage1.jsonl parts/metrics_stage1.jsonl
[ "$(wc -l < whole/metrics_stage1.jsonl)" = 2 ] || fail "expected a line per epoch"

# SIGTERM to one rank: both save behind the same step and end with their own status, and the run goes on from there.
long=("${ranks[@]}" --stage 1 --epochs 3)
quietly "${long[@]}" --checkpoint-dir unbroken
"${long[@]}" --checkpoint-dir stopped > stopped.log 2>&1 &
job=$!
until grep -q "epoch 1/3" stopped.log; do kill -0 $job || { cat stopped.log >&2; fail "the job ended"; }; sleep 0.02; done
kill -TERM "$(a_rank stopped)"
status=0; wait $job || status=$?
[ "$status" = 75 ] || { cat stopped.log >&2; fail "ended with status $status after SIGTERM"; }
[ "$(grep -c "stopped by SIGTERM" stopped.log)" = 2 ] || { cat stopped.log >&2; fail "expected both ranks to stop"; }
grep -q "rank 1: stopped by SIGTERM" stopped.log || fail "the log does not name the rank"
quietly "${long[@]}" --checkpoint-dir stopped --resume-from stopped/last_stage1
same unbroken/last_stage1.safetensors stopped/last_stage1.safetensors
same_log unbroken/metrics_stage1.jsonl stopped/metrics_stage1.jsonl

# A rank that is killed ends the job soon, and what was saved before can be resumed.
"${long[@]}" --checkpoint-dir killed > killed.log 2>&1 &
job=$!
until [ -f killed/last_stage1.resume.safetensors ]; do
  kill -0 $job || { cat killed.log >&2; fail "the job ended"; }
  sleep 0.05
done
kill -9 "$(a_rank killed)"
for _ in $(seq 300); do kill -0 $job 2> /dev/null || break; sleep 0.1; done
if kill -0 $job 2> /dev/null; then fail "the job still runs 30 s after a rank was killed"; fi
status=0; wait $job || status=$?
[ "$status" != 0 ] || fail "a job whose rank was killed ended well"
quietly "${long[@]}" --checkpoint-dir killed --resume-from killed/last_stage1
same unbroken/last_stage1.safetensors killed/last_stage1.safetensors

# Stages 2 and 3, with accumulation and recomputation; and the feature level.
quietly "${ranks[@]}" --stage 2 --epochs 1 --checkpoint-dir whole --load-experts-from whole/expert_all_best.safetensors
quietly "${ranks[@]}" --stage 3 --epochs 1 --checkpoint-dir whole --load-experts-from whole/router_best.safetensors \
  --accumulation-steps 2 --gradient-checkpointing --sync-bn
quietly "${mpirun[@]}" -n 2 "$bin/train_feature_level_moe" --use-ddp --preset demo --data-root data --img-size 64 --head-width 8 \
  --epochs 2 --stage1-epochs 1 --batch-size 2 --replicas 1 --num-workers 0 --checkpoint-dir feature
[ -f feature/feature_best.safetensors ] || fail "no feature_best"

# What cannot be.
refuses "no launcher started this process" "${train[@]}" --use-ddp --checkpoint-dir x
refuses "they need --use-ddp" "${mpirun[@]}" -n 2 "${train[@]}" --checkpoint-dir x
refuses "for a single process" "${mpirun[@]}" -n 2 "$bin/train_model_level_moe" --preset demo --data-root data --use-ddp \
  --replicas 2 --checkpoint-dir y
refuses "has 2 ranks, this one 1" "${train[@]}" --stage 1 --epochs 3 --checkpoint-dir y --resume-from killed/last_stage1
refuses "the environment's RANK" env WORLD_SIZE=2 RANK=2 LOCAL_RANK=0 MASTER_ADDR=localhost MASTER_PORT=1 "${train[@]}" --use-ddp
refuses "torchrun starts processes for GPUs" env WORLD_SIZE=1 RANK=0 LOCAL_RANK=0 MASTER_ADDR=localhost MASTER_PORT=1 \
  "${train[@]}" --use-ddp --device cpu
[ ! -e x ] && [ ! -e y ] || fail "a refused run left something behind"
