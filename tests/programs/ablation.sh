#!/usr/bin/env bash
# ablation.sh BIN SOURCE: a small ablation, interrupted and finished, its table and its page, and bad input.
set -euo pipefail
bin=$1
source=$2
. "$(dirname "${BASH_SOURCE[0]}")/checks.sh"

"$bin/make_dataset" --output data --procedural 9 --train 16 --validation 8 --test 6 --size 64 --seed 4 > /dev/null
small=("$bin/ablation" --data-root data --img-size 64 --head-width 8 --epochs 3 --stage1-epochs 1 --replicas 2)
"${small[@]}" --output whole --rows Switch granularity --seeds 2 --at-once 2 > log 2>&1 || { cat log >&2; fail "did not run"; }
[ "$(wc -l < whole/results.csv)" = 7 ] || fail "expected a line a run, three rows of two seeds"
[ "$(head -1 whole/results.csv | tr ',' '\n' | wc -l)" = "$(tail -1 whole/results.csv | tr ',' '\n' | wc -l)" ] ||
  fail "the head of results.csv has another number of columns than its lines"
switch=GlobalPool-ReplicatedConv-TopKSoftmax-2-Switch-Grouped
grep -q '"cosine":\[-\?[01]' whole/$switch/seed0/interference_stage2.jsonl || fail "no angle for an auxiliary loss"
grep -q '"cosine":\[null' whole/GlobalPool-*-EmaBias-Masked/seed0/interference_stage2.jsonl ||
  fail "an angle where there is no auxiliary loss"

# Killed in its second stage, a run goes on from its last epoch and ends with the same weights, figures and logs.
"${small[@]}" --output cut --rows $switch --seeds 1 --at-once 2 > log 2>&1 &
parent=$!
for _ in $(seq 600); do
  [ ! -e cut/$switch/seed0/last_stage2.resume.safetensors ] || break
  kill -0 $parent 2> /dev/null || { cat log >&2; fail "ended before it could be killed"; }
  sleep 0.02
done
refuses "another ablation is at work" "${small[@]}" --output cut --rows $switch --seeds 1
kill -9 $parent
wait $parent 2> /dev/null || true
[ ! -e cut/$switch/seed0/result.json ] || fail "was not killed in time"
"${small[@]}" --output cut --rows $switch --seeds 1 --at-once 2 > log 2>&1 || { cat log >&2; fail "did not go on"; }
cmp -s {whole,cut}/$switch/seed0/last_stage2.safetensors || fail "a run that was taken up again has other weights"
cmp -s {whole,cut}/$switch/seed0/interference_stage2.jsonl || fail "a run that was taken up again has another log"
diff <(grep -v seconds_per_step whole/$switch/seed0/result.json) <(grep -v seconds_per_step cut/$switch/seed0/result.json) ||
  fail "a run that was taken up again reached other figures"

# The table is of all runs in the folder, not only those of the last call.
"${small[@]}" --output whole --rows Switch --seeds 1 > log 2>&1
grep -q "1 runs done, 0 to go" log || fail "did not keep what was there"
[ "$(wc -l < whole/results.csv)" = 7 ] || fail "results.csv lost the runs of an earlier call"

python3 "$source/scripts/ablation_page.py" whole > /dev/null
grep -q "<h2>Granularity</h2>" whole/index.html || fail "no table on the page"

refuses "had --lr 0.002, this one has 0.5" "${small[@]}" --output whole --rows Switch --lr 0.5
refuses "there is no table, policy or row 'Switc'" "${small[@]}" --output other --rows Switc
refuses "--data-root is missing" "$bin/ablation" --output other
refuses "a launcher started 2 processes" env OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_LOCAL_RANK=0 \
  "${small[@]}" --output other
refuses "--use-ema: an ablation scores the last weights" "${small[@]}" --output other --use-ema
refuses "its log: broken/" "$bin/ablation" --output broken --rows Switch --seeds 1 --data-root data --img-size 64 \
  --head-width 8 --epochs 1 --stage1-epochs 0 --batch-size 64
grep -q "fewer than one optimizer step" broken/*/seed0/log.txt || fail "the log does not say why"
echo "ablation: all checks passed"
