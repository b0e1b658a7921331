#!/usr/bin/env bash
# pipeline.sh BIN: runs the programs on a small data set of procedural textures and checks what they leave behind.
set -euo pipefail
bin=$1
. "$(dirname "${BASH_SOURCE[0]}")/checks.sh"
same() { cmp -s "$1" "$2" || fail "$1 and $2 differ"; }

"$bin/make_dataset" --output data --procedural 9 --train 16 --validation 8 --test 12 --size 64 --seed 4 > /dev/null
small=("$bin/train_model_level_moe" --preset demo --data-root data --seed 2 --small-size 0
       --sinet-width 8 --pranet-width 8 --zoomnet-width 8 --ujsc-width 8 --router-width 8)
train=("${small[@]}" --img-size 64)

# Stage 1: a run that stops and resumes is the unbroken one, bit for bit; so is one with another number of workers.
"${train[@]}" --stage 1 --epochs 2 --use-ema --checkpoint-dir whole > /dev/null 2>&1
"${train[@]}" --stage 1 --epochs 2 --use-ema --checkpoint-dir parts --stop-after 1 --num-workers 0 > /dev/null 2>&1
"${train[@]}" --stage 1 --epochs 2 --use-ema --checkpoint-dir parts --resume-from parts/last_stage1 > /dev/null 2>&1
same whole/last_stage1.safetensors parts/last_stage1.safetensors
same whole/expert_all_best.safetensors parts/expert_all_best.safetensors
[ "$(wc -l < parts/metrics_stage1.jsonl)" = 2 ] || fail "expected a line per epoch in metrics_stage1.jsonl"
for k in 0 1 2 3; do [ -f "whole/expert_${k}_best.safetensors" ] || fail "no expert_${k}_best"; done

# SIGTERM saves behind the step at hand, in the middle of an epoch, and the run goes on from there.
long=("${train[@]}" --stage 1 --epochs 3 --batch-size 2 --replicas 1)
"${long[@]}" --checkpoint-dir unbroken > /dev/null 2>&1
"${long[@]}" --checkpoint-dir stopped > stopped.log 2>&1 &
trainer=$!
until grep -q "epoch 1/3" stopped.log; do sleep 0.02; done
sleep 0.3
kill -TERM $trainer
status=0; wait $trainer || status=$?
[ "$status" = 75 ] || { cat stopped.log >&2; fail "ended with status $status after SIGTERM"; }
"${long[@]}" --checkpoint-dir stopped --resume-from stopped/last_stage1 > /dev/null 2>&1
same unbroken/last_stage1.safetensors stopped/last_stage1.safetensors
[ "$(wc -l < stopped/metrics_stage1.jsonl)" = 3 ] || fail "expected a line per epoch after SIGTERM"
diff <(sed 's/"seconds_per_step":[^,}]*//' unbroken/metrics_stage1.jsonl) \
     <(sed 's/"seconds_per_step":[^,}]*//' stopped/metrics_stage1.jsonl) || fail "the log differs after SIGTERM"

# One expert alone: the backbone of the first is loaded and stays as it is.
"${train[@]}" --stage 1 --epochs 1 --expert-id 0 --checkpoint-dir alone > /dev/null 2>&1
"${train[@]}" --stage 1 --epochs 1 --expert-id 1 --checkpoint-dir alone \
  --load-experts-from alone/expert_0_best.safetensors > loaded.log 2>&1
grep -q "loaded from alone/expert_0_best.safetensors: backbone, expert 0" loaded.log || fail "no word of what was loaded"
grep -q "not found in any file, so left at the start: expert 1, expert 2, expert 3, router, balance" loaded.log ||
  fail "no word of what was not found"

# Stages 2 and 3, two replicas, accumulation, recomputation.
"${train[@]}" --stage 2 --epochs 1 --checkpoint-dir whole --load-experts-from whole/expert_all_best.safetensors \
  --replicas 2 > /dev/null 2>&1
"${train[@]}" --stage 3 --epochs 1 --checkpoint-dir whole --load-experts-from whole/router_best.safetensors \
  --accumulation-steps 2 --gradient-checkpointing > /dev/null 2>&1

# Inference.
"$bin/predict" --checkpoint whole/ensemble_best.safetensors --input data/Test/Image --output masks \
  --routing routing.json > /dev/null 2>&1
[ "$(ls masks | wc -l)" = 12 ] || fail "expected 12 masks"
grep -q '"weights"' routing.json || fail "no weights in routing.json"
"$bin/evaluate" --pred masks --gt data/Test/GT_Object --json scores.json > /dev/null
grep -q '"smeasure"' scores.json || fail "no smeasure in scores.json"
# More views, several checkpoints, and the random field, which is the same before and after the maps are written.
"$bin/predict" --checkpoint whole/ensemble_best.safetensors whole/router_best.safetensors --input data/Test/Image \
  --output masks_two --tta flip,1.5 --routing routing_two.json > /dev/null 2>&1
[ "$(grep -c '"checkpoint"' routing_two.json)" = 2 ] || fail "expected the decisions of two checkpoints"
"$bin/predict" --checkpoint whole/ensemble_best.safetensors --input data/Test/Image --output masks_views --tta flip,1.5 \
  --crf --routing routing_views.json > /dev/null 2>&1
same routing.json routing_views.json
"$bin/predict" --checkpoint whole/ensemble_best.safetensors --input data/Test/Image --output masks_crf --crf > /dev/null 2>&1
"$bin/evaluate" --pred masks_crf --gt data/Test/GT_Object --json scores_crf.json > /dev/null
"$bin/evaluate" --pred masks --gt data/Test/GT_Object --images data/Test/Image --crf --json scores_images.json > /dev/null
same scores_crf.json scores_images.json
! cmp -s scores.json scores_crf.json || fail "--crf changed nothing"
# A model that is scored as it is asked gives the figures of its maps, with every stage.
"$bin/evaluate" --pred masks_views --gt data/Test/GT_Object --json scores_views.json > /dev/null
"$bin/evaluate" --checkpoint whole/ensemble_best.safetensors --batch-size 5 --tta flip,1.5 --crf --images data/Test/Image \
  --gt data/Test/GT_Object --json scores_asked.json > /dev/null
same scores_views.json scores_asked.json
"$bin/inspect" --checkpoint whole/ensemble_best.safetensors --data-root data --output report \
  --alone alone/expert_0_best.safetensors --alone-expert 0 > inspect.log 2>&1
for key in expert_3 ensemble dense uniform random_top2 best_pair oracle alone; do
  grep -q "\"$key\"" report/summary.json || fail "no $key in summary.json"
done

# The feature level: two stages in one run, and a run that stops between and within them.
stages=("$bin/train_feature_level_moe" --preset demo --data-root data --seed 2 --img-size 64 --head-width 8 --epochs 3)
feature=("${stages[@]}" --stage1-epochs 1 --use-ema)
"${feature[@]}" --checkpoint-dir feature > /dev/null 2>&1
"${feature[@]}" --checkpoint-dir pieces --stop-after 1 > /dev/null 2>&1
[ ! -e pieces/last_stage2.safetensors ] || fail "--stop-after 1 went on into the second stage"
"${feature[@]}" --checkpoint-dir pieces --resume-from pieces/last_stage1 --stop-after 1 > /dev/null 2>&1
"${feature[@]}" --checkpoint-dir pieces --resume-from pieces/last_stage2 > /dev/null 2>&1
same feature/last_stage2.safetensors pieces/last_stage2.safetensors
same feature/feature_best.safetensors pieces/feature_best.safetensors
# The use of every level's experts is a line of its own, which fits a terminal.
"${stages[@]}" --stage1-epochs 0 --checkpoint-dir slow --progressive-unfreeze > slow.log 2>&1
[ "$(grep -c '^  experts .*[0-9]-[0-9].*,.*,.*,' slow.log)" = 3 ] || { cat slow.log >&2; fail "no use of experts an epoch"; }
for stage in "stage1: the backbone's last stage" "stage2: the backbone's last two stages" "stage3: everything"; do
  grep -q "$stage" slow.log || { cat slow.log >&2; fail "--progressive-unfreeze has no '$stage'"; }
done
# A packed data set is the same data set.
"$bin/pack_dataset" --data-root data --output packed --size 64 > /dev/null 2>&1
"${feature[@]/#data/packed}" --checkpoint-dir from_packed > /dev/null 2>&1
same feature/last_stage2.safetensors from_packed/last_stage2.safetensors
"$bin/inspect" --checkpoint whole/ensemble_best.safetensors --data-root packed --output report_packed \
  --alone alone/expert_0_best.safetensors --alone-expert 0 > inspect.log 2>&1
diff <(sed 's/packed/data/g' report_packed/summary.json) report/summary.json || fail "inspect finds other figures in packed"
diff -r report/samples report_packed/samples || fail "inspect shows other samples of the packed data set"
# So it is for pictures made while training, from photographs that are packed themselves.
made=(--photos packed/train.safetensors --train 8 --validation 4 --test 4 --size 64 --seed 5)
"$bin/make_dataset" --output made "${made[@]}" > /dev/null
"$bin/make_dataset" --output made_packed --packed "${made[@]}" > /dev/null
"$bin/make_dataset" --output made_packed --packed "${made[@]}" | grep -q "already there" || fail "packed again"
for root in made made_packed; do
  "${train[@]/#data/$root}" --stage 1 --epochs 1 --fresh 8 --photos packed/train.safetensors \
    --checkpoint-dir "fresh_$root" > /dev/null 2>&1
done
same fresh_made/last_stage1.safetensors fresh_made_packed/last_stage1.safetensors
"$bin/predict" --checkpoint feature/feature_best.safetensors whole/ensemble_best.safetensors --input data/Test/Image \
  --output masks_both --routing both.json > /dev/null 2>&1
"$bin/predict" --checkpoint feature/feature_best.safetensors --input data/Test/Image --output masks_feature \
  --routing feature.json > /dev/null 2>&1
[ "$(grep -c '"weights"' feature.json)" = $((4 * $(ls data/Test/Image | wc -l))) ] || fail "not four decisions a picture"
! cmp -s <(cat masks_feature/*) <(cat masks_both/*) || fail "a second checkpoint changed nothing"
grep -q '"trained_usage"' feature/metrics_stage2.jsonl || fail "no usage in the feature level's log"

# Bad input is refused by name.
refuses "--data-root is missing" "$bin/train_model_level_moe" --stage 1
refuses "stage 2 needs --load-experts-from" "${train[@]}" --stage 2
refuses "--top-k" "${train[@]}" --stage 1 --top-k 3
refuses "multiples of 32" "${small[@]}" --stage 1 --img-size 100
refuses "trained on different backbones" "${train[@]}" --stage 2 --checkpoint-dir other \
  --load-experts-from whole/expert_0_best.safetensors alone/expert_1_best.safetensors
refuses "was trained with --backbone pvt_v2_b0" "${train[@]}" --stage 2 --backbone pvt_v2_b1 \
  --load-experts-from whole/expert_all_best.safetensors
refuses "had --lr" "${train[@]}" --stage 1 --epochs 2 --use-ema --lr 0.5 --resume-from whole/last_stage1
refuses "responsibility-temperature" "${train[@]}" --stage 1 --responsibility-temperature 0
refuses "is of stage 1, this run is stage 3" "${train[@]}" --stage 3 --resume-from whole/last_stage1
refuses "torch.load" "${train[@]}" --stage 1 --backbone-weights pvt.pth
refuses "does not record a model" "$bin/predict" --checkpoint whole/last_stage1.resume.safetensors --input data --output m
refuses "--data-root" "$bin/inspect" --checkpoint whole/ensemble_best.safetensors --output m
predict=("$bin/predict" --checkpoint whole/ensemble_best.safetensors --input data/Test/Image --output m)
refuses "expected flip, vflip or a scale from 0.1 to 10, got 'flop'" "${predict[@]}" --tta flop
refuses "scale 1.1 of 64 x 64 comes to 64 x 64" "${predict[@]}" --tta 1.1
refuses "--crf-iterations requires --crf" "${predict[@]}" --crf-iterations 2
refuses "--crf-tau: expected a number > 0, got 0" "${predict[@]}" --crf --crf-tau 0
refuses "--crf reads the images" "$bin/evaluate" --pred masks --gt data/Test/GT_Object --crf
refuses "what to score is missing" "$bin/evaluate" --gt data/Test/GT_Object
refuses "--checkpoint reads the images" "$bin/evaluate" --checkpoint whole/ensemble_best.safetensors --gt data/Test/GT_Object
refuses "holds the ground truths themselves" "$bin/evaluate" --checkpoint whole/ensemble_best.safetensors \
  --gt data/Test --images data/Test
refuses "--tta requires --checkpoint" "$bin/evaluate" --pred masks --gt data/Test/GT_Object --tta flip
refuses "no image in data/Train/Image" "$bin/evaluate" --pred masks --gt data/Test/GT_Object --crf --images data/Train/Image
refuses "missing" "$bin/predict" --checkpoint whole/expert_0_best.safetensors --input data/Test/Image --output m
refuses "variant compiled is sparse" "${feature[@]}" --no-use-sparse-moe
refuses "--use-ddp" "${feature[@]}" --use-ddp
refuses "is not among those given" "${train[@]/#data/made_packed}" --stage 1 --fresh 8 --photos packed/test.safetensors
refuses "holds a data set made with another \"image_ending\"" "$bin/make_dataset" --output made_packed "${made[@]}"
rm -r made_packed/Info
refuses "not a generated data set" "${train[@]/#data/made_packed}" --stage 1 --fresh 8 --photos packed/train.safetensors
refuses "no training data found in masks" "$bin/pack_dataset" --data-root masks --output other
refuses "--moe-num-experts" "${feature[@]}" --moe-num-experts 4
refuses "had --bias-rate 0.1, this one has 0.5" "${feature[@]}" --checkpoint-dir feature --bias-rate 0.5 \
  --resume-from feature/last_stage2
refuses "had --router-rate 0.3, this one has 0.1" "${feature[@]}" --checkpoint-dir feature --router-rate 0.1 \
  --resume-from feature/last_stage2
refuses "variant compiled is with deep supervision" "${feature[@]}" --no-deep-supervision
refuses "--progressive-unfreeze needs at least 3 epochs behind the frozen backbone, --epochs 3 and --stage1-epochs 1 leave 2" \
  "${feature[@]}" --progressive-unfreeze
refuses "feature/last_stage2 is the end of a run, so no epoch was left to train" "${feature[@]}" --checkpoint-dir elsewhere \
  --resume-from feature/last_stage2
refuses "--stage1-epochs 5 is more than --epochs 3" "${stages[@]}" --stage1-epochs 5
echo "pipeline: all checks passed"
