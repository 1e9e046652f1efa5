#!/usr/bin/env bash
# The whole suite for a GPU, in under eight minutes, on a bare machine with torch >= 2.11, einops, numpy and
# pytest, without a network:
#
#   benchmarks/gpu.sh                          on the GPU
#   benchmarks/gpu.sh --device cpu --quick     a dry run: tiny networks, one form traced and none compiled
#
# Results go to $OUT, or to benchmarks/results/<torch version>, as gpu-*.json and gpu.log, each record as soon as
# it is measured. The parts that decide most come first, what compiles longest last. A part whose time runs out
# is stopped, keeps what it has, and is named; that is no failure, unless it has nothing. Whatever becomes of a
# part, the next one runs. The exit status is 0 if none failed.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
device=cuda quick= total=465 stretch=1 short=0.6
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=$2; shift 2 ;;
    --quick) quick=--quick total=870 stretch=3 short=0.2; shift ;;
    *) echo "gpu.sh: unknown option $1" >&2; exit 2 ;;
  esac
done
if [ "$device" = cuda ]; then
  "$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' || { echo "gpu.sh: no GPU" >&2; exit 2; }
fi
version=$("$python" -c 'import torch; print(torch.__version__.partition("+")[0])') || exit 2
out=${OUT:-benchmarks/results/$version}
mkdir -p "$out"
rm -f "$out"/gpu-*.json "$out/gpu.log"
status=0 summary=

part() { # part NAME SECONDS MODULE [ARGUMENT...]: one benchmark, stopped after so many seconds
  local name=$1 limit=$(($2 * stretch)) module=$3 begun=$SECONDS left=$((total - SECONDS)) end=finished
  shift 3
  [ $limit -le $left ] || limit=$left
  if [ $limit -lt 10 ]; then
    summary+="$name: LEFT OUT, the time is over"$'\n'
    return
  fi
  echo "== $name"
  timeout "$limit" "$python" -m "benchmarks.$module" $quick --device "$device" --out "$out" --name "gpu-$name" "$@"
  case $? in
    0) ;;
    124) end="STOPPED after $limit s, what it has is kept" ;;
    *) end=FAILED status=1 ;;
  esac
  rm -f "$out/gpu-$name".csv "$out/gpu-$name".svg "$out/.gpu-$name".*
  if [ ! -s "$out/gpu-$name.json" ]; then end+=", and has NOTHING" status=1; fi
  summary+="$name: $end ($((SECONDS - begun)) s)"$'\n'
}

step() { # step NAME SECONDS [ARGUMENT...]: the eager forms named first, and what is to be compiled if not in a hurry
  part "$1" "$2" step --teacher eval --seconds 3 "${@:3}"
}

all() {
  local base=(stand-in fcfd "fcfd lean") whole=("fcfd whole") last=("fcfd graphs" "fcfd lean whole" "fcfd stages")
  local pairs=("150k tokens" cifar vit "32k tokens" imagenet "resnet to vit") half=(cifar imagenet) trace=()
  if [ -n "$quick" ]; then
    whole=() last=("fcfd stages") pairs=("32k tokens" cifar) half=(cifar) trace=(--backend eager)
  fi
  step step 110 --dtype float32 --minutes 1.3 --variants KD "${base[@]}" "${whole[@]}"
  part memory 65 memory --measure memory time --minutes 0.9 --seconds 2 --pairs "${pairs[@]}"
  part check 50 device_check
  step step-paths 90 --dtype float32 --paths 4 --minutes 1.1 \
    --variants "${base[@]}" "fcfd batched" "${whole[@]}" "${whole[@]/whole/batched whole}"
  part losses 45 losses --compile none --seconds 0.1 --minutes "$short"
  step step-half 75 --dtype bfloat16 --pair "${half[@]}" --minutes 1 --variants "${base[@]}" "${whole[@]}"
  step step-compiled 100 --dtype float32 --minutes 1.3 "${trace[@]}" --variants stand-in fcfd "${last[@]}"
  printf '== in all\n%s' "$summary"
  return $status
}

all > >(tee "$out/gpu.log") 2>&1
code=$?
echo "gpu.sh: $SECONDS s, status $code"
exit $code
