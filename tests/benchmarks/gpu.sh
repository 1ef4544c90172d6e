#!/usr/bin/env bash
# Everything about speed that needs a GPU, in one call of about ten minutes: tests/benchmarks/gpu.sh OUT
# Each part has its own limit, so that one that hangs takes nothing from the others. No network.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:?usage: tests/benchmarks/gpu.sh OUT}
mkdir -p "$out"
python=${PYTHON:-python}
bench="$python -m sophon_bench.cli"
store=$(mktemp -d)
trap 'rm -rf "$store"' EXIT

part() { # part NAME SECONDS COMMAND...
    local name=$1 limit=$2
    shift 2
    echo "== $name: $*"
    timeout "$limit" "$@" > "$out/$name.log" 2>&1
    echo "   exit $? (124: it took longer than $limit s)"
    tail -n 12 "$out/$name.log"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/gpu.csv"
part tests 90 $python -m pytest -q tests/test_devices.py tests/test_samples.py -m "not slow" -p no:cacheprovider

# the loop against bare passes, eager: at least 0.90
part roofline 60 $bench overhead --roofline --device cuda --store "$store" \
    --rounds 20 --json "$out/roofline.json"
part roofline-resnet18 60 $bench overhead --roofline --device cuda --store "$store" \
    --backbone resnet18 --image-size 64 --rounds 20 --json "$out/roofline-resnet18.json"

# bf16, channels-last and compiled against eager fp32, resnet50 at 224x224, batch 256: at least 3x
part large-fp32 60 $bench overhead --roofline --device cuda --store "$store" --backbone resnet50 \
    --image-size 224 --batch-size 256 --attack finetune --rounds 5 --json "$out/large-fp32.json"
part large-bf16 120 $bench overhead --roofline --device cuda --store "$store" --backbone resnet50 \
    --image-size 224 --batch-size 256 --attack finetune --rounds 5 --precision bf16 \
    --compile default --json "$out/large-bf16.json"
part graphs 90 $bench overhead --roofline --device cuda --store "$store" --attack finetune \
    --rounds 20 --compile reduce-overhead --json "$out/graphs.json"

# 32 learning rates at once against one after the other: at least 4x; suppression; growth
part together 60 $python tests/benchmarks/measure.py --device cuda --out "$out" --only together
part suppression 120 $python tests/benchmarks/measure.py --device cuda --out "$out" --only fts,loader

# a slice of the full leaderboard, to scale up: one defense, one n, one seed
for workers in 1 8; do
    part "standard-$workers" 150 $bench run --device cuda --attack @standard --seeds 0 \
        --workers "$workers" --store "$store/$workers" --json "$out/standard-$workers.json"
done
