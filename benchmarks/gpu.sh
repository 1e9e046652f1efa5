#!/usr/bin/env bash
# The whole suite for a GPU, in under eight minutes, on a bare machine with torch >= 2.11, einops, numpy and
# pytest, without a network:
#
#   benchmarks/gpu.sh                          on the GPU
#   benchmarks/gpu.sh --device cpu --quick     a dry run of a few minutes
#
# Results go to $OUT, or to benchmarks/results/<torch version>, as gpu-*.json and gpu.log. Every part runs,
# whatever became of the one before it; the exit status is 0 if all passed.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
device=cuda quick= eager= modes=
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=$2; shift 2 ;;
    --quick) quick=--quick modes="--teacher eval" eager="--variants KD stand-in fcfd"; shift ;;
    *) echo "gpu.sh: unknown option $1" >&2; exit 2 ;;
  esac
done
version=$("$python" -c 'import torch; print(torch.__version__.partition("+")[0])') || exit 2
out=${OUT:-benchmarks/results/$version}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
status=0

part() { # part NAME SECONDS MODULE [ARGUMENT...]: one benchmark, stopped after so many seconds
  local name=$1 limit=$2 module=$3 begun=$SECONDS
  shift 3
  echo "== $name"
  timeout "$limit" "$python" -m "benchmarks.$module" --device "$device" --out "$work" --name "gpu-$name" "$@"
  local code=$?
  [ $code -eq 0 ] || { status=1; echo "== $name FAILED with status $code"; }
  cp "$work/gpu-$name.json" "$out" || status=1
  echo "== $name took $((SECONDS - begun)) s"
}

all() {
  part check 80 device_check
  part step-cifar 130 step $quick --dtype float32 $modes --minutes 1.4 --seconds 3
  part step-cifar-bf16 95 step $quick --dtype bfloat16 --teacher eval --batch 64 256 --minutes 1 --seconds 3 $eager
  part step-imagenet 70 step $quick --imagenet --dtype bfloat16 --teacher eval --minutes 0.6 --seconds 5 $eager
  part memory 60 memory $quick --minutes 0.8 --seconds 3
  part timeline 40 timeline $quick --minutes 0.4
  part losses 55 losses $quick --compile none --seconds 0.1 --minutes 0.7
  return $status
}

if [ "$device" = cuda ]; then
  "$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' || { echo "gpu.sh: no GPU" >&2; exit 2; }
fi
all > >(tee "$out/gpu.log") 2>&1
code=$?
echo "gpu.sh: $SECONDS s, status $code"
exit $code
