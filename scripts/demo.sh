#!/usr/bin/env bash
# From a fresh machine to a trained mixture and a report to look at: sets up, builds, makes a camouflage data set from
# photographs, trains the three stages, evaluates and writes DIR/report.html. What is there already, made by the same
# programs with the same parameters, is kept; a phase that was interrupted runs again.
#
#   scripts/demo.sh [--out DIR] [--seed N] [--quick]
#
#   --out DIR   folder to write, default ./demo
#   --seed N    of the data set, the split of the photographs and the training, default 0
#   --quick     minutes instead of a quarter of an hour: shows that everything runs; the figures mean nothing
set -euo pipefail
caller=$PWD
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

out=demo
seed=0
quick=
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    --seed) seed=${2:?--seed needs a number}; shift 2 ;;
    --quick) quick=yes; shift ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$root/scripts/demo.sh"; exit 0 ;;
    *) fail "expected --out DIR, --seed N or --quick, got $1" ;;
  esac
done
[[ "$seed" =~ ^[0-9]+$ ]] || fail "--seed: expected a whole number from 0, got $seed"
out=$(cd "$caller" && mkdir -p "$out" && cd "$out" && pwd) || fail "--out: cannot make the folder $out"
[ -w "$out" ] || fail "--out: cannot write into $out"

# ---- Programs and their flags ---------------------------------------------------------------------------------------
bin=$root/build/cpu/bin
programs=(make_dataset train_model_level_moe inspect predict evaluate)
photos=("${debian_photos[@]}")
data=$out/data
checkpoints=$out/checkpoints

pictures=(400 160 800)  # on disk, for training, validation and test; training itself makes new ones every epoch
fresh=1200
if [ -n "$quick" ]; then pictures=(32 16 32) fresh=32; fi

dataset=(--output "$data" --photos "${photos[@]}" --test-photos 4 --train "${pictures[0]}"
         --validation "${pictures[1]}" --test "${pictures[2]}" --size 96 --difficulty 0.05 --seed "$seed")
training=(--preset demo --data-root "$data" --photos "${photos[@]}" --fresh "$fresh" --difficulty 0.05
          --checkpoint-dir "$checkpoints" --seed "$seed" --replicas 2)
if [ -n "$quick" ]; then training+=(--epochs 2); fi
stage1=(--stage 1 "${training[@]}")
stage2=(--stage 2 "${training[@]}" --load-experts-from "$checkpoints/expert_all_best.safetensors")
stage3=(--stage 3 "${training[@]}" --load-experts-from "$checkpoints/router_best.safetensors")
inspection=(--checkpoint "$checkpoints/ensemble_best.safetensors" --data-root "$data" --output "$out")

# ---- Phases --------------------------------------------------------------------------------------------------------
names=()
seconds=()
states=()
begin() {
  started=$SECONDS
  headline "[$((${#names[@]} + 1))/8] $1"
}
end() {  # NAME STATE
  names+=("$1")
  seconds+=($((SECONDS - started)))
  states+=("$2")
}

# phase NAME TITLE OUTPUT PROGRAM ARGUMENT...: runs the program unless OUTPUT is there and was made by this program,
# with these arguments, from these results of the phases before. A stage of training that was interrupted goes on from
# its last epoch.
history=
phase() {
  local name=$1 title=$2 output=$3 program=$4 last=$checkpoints/last_$1 state="" stamp
  shift 4
  stamp=$out/.stamps/$name
  history=$({ echo "$history"; printf '%s\n' "$program" "$@"; sha256sum <"$bin/$program"; } | sha256sum)
  begin "$title"
  if [ -e "$output" ] && [ "$(cat "$stamp" 2>/dev/null)" = "done $history" ]; then
    echo "already there: $output"
    end "$name" "already there"
    return
  fi
  if [ -e "$last.resume.safetensors" ] && [ "$(cat "$stamp" 2>/dev/null)" = "begun $history" ]; then
    set -- "$@" --resume-from "$last"
    state="resumed"
  else
    rm -f "$last".*safetensors
  fi
  mkdir -p "$out/.stamps"
  echo "begun $history" >"$stamp"
  "$bin/$program" "$@" || fail "$program failed in phase '$title'; the reason stands above. The command was:
  $bin/$program $*"
  [ -e "$output" ] || fail "$program ended without $output"
  echo "done $history" >"$stamp"
  end "$name" "$state"
  # For the report, which tells what a phase took when it ran.
  printf '{"name": "%s", "seconds": %d, "state": "%s"}\n' "$name" "${seconds[-1]}" "$state" >"$stamp.json"
}

begin "Setting up"
scripts/setup.sh
end set-up ""
begin "Building"
build "${programs[@]}"
end build ""
need_debian_photos

phase data "Making the data set" "$data" make_dataset "${dataset[@]}"
phase stage1 "Stage 1: the experts and their backbone" "$checkpoints/expert_all_best.safetensors" \
  train_model_level_moe "${stage1[@]}"
phase stage2 "Stage 2: the router" "$checkpoints/router_best.safetensors" train_model_level_moe "${stage2[@]}"
phase stage3 "Stage 3: everything" "$checkpoints/ensemble_best.safetensors" train_model_level_moe "${stage3[@]}"
phase inspect "Evaluating on unseen photographs" "$out/summary.json" inspect "${inspection[@]}"

begin "Writing the report"
cat "$out"/.stamps/{data,stage1,stage2,stage3,inspect}.json >"$out/phases.jsonl"
.venv/bin/python scripts/report.py "$out" || fail "the report could not be written; the reason stands above"
end report ""

headline "Done"
total=0
for i in "${!names[@]}"; do
  total=$((total + seconds[i]))
  printf '%-10s %12s  %s\n' "${names[i]}" "$(duration "${seconds[i]}")" "${states[i]}"
done
printf '%-10s %12s\n\n%s\n' total "$(duration $total)" "$out/report.html"
