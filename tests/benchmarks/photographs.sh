#!/usr/bin/env bash
# The board of photographs: Imagenette (original) and CIFAR-10 (restricted), EfficientNet-Lite0 from
# ImageNet weights (the extra [pretrained]). First `tune`, on seed 100, then the run, on seeds 0 to
# 2. Both have half the scenario's budget: 50 updates of 64 images, 8 passes over what an attacker
# trains on; the best trial goes on for 250. It is what two CPU cores do in hours, as are the two
# configurations of each search: the first of its grid, and one that is drawn.
# At the paper's 64x64 pixels this backbone stays at 86.5 % of Imagenette's test images after 1500
# updates of pre-training; 80x80 are the fewest at which it starts from 88 % or more.
#
#     tests/benchmarks/photographs.sh DATA STORE OUT [OPTION...]
#
# DATA holds the published sets (sophon-bench data list --data DATA). Options go to sophon-bench:
# --device cuda, --threads 1, --workers 2, --dry-run. OUT gets the searches' documents and a file of
# the run. To a machine without network, pack_photographs.py takes what is needed of DATA and the
# weights.
#
# It can be done in slices. SLICE=540 stops it after so many seconds, with exit code 124; the same
# command goes on from there, and exits with 0 once nothing is left. SEEDS=0 runs that seed alone,
# and writes OUT/seeds-0.json; `submit --suite @light --suite @paper --records FILE --records FILE`
# joins such files, from whatever machine. A search whose document is in
# leaderboard/tuning/photographs, or in OUT, is not made again.
#
# Where memory is slow, an allocator that keeps pages makes it faster:
#     LD_PRELOAD=libjemalloc.so.2 MALLOC_CONF=dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always
set -euo pipefail
cd "$(dirname "$0")/../.."
data=${1:?usage: $0 DATA STORE OUT [OPTION...]} store=${2:?STORE} out=${3:?OUT}
shift 3
python=${PYTHON:-python} seeds=${SEEDS:-0-2}
published=leaderboard/tuning/photographs
mkdir -p "$out"
end=$((SECONDS + ${SLICE:-1000000000}))

bench() { # bench COMMAND ARGUMENTS...: for as long as the slice has; 124 if that is over
    timeout --signal INT --kill-after 60 "$((end > SECONDS ? end - SECONDS : 1))" \
        "$python" -m sophon_bench "$@" --scenario 'imagenette-cifar10[image_size=80,pretrain_steps=600]' \
        --backbone tf_efficientnet_lite0 --weights timm --samples 500 --steps 50 --data "$data" \
        --store "$store" "${options[@]}"
}
options=("$@")

# A tenth of the updates of SOPHON's defaults, so that protection takes minutes on a CPU. Steps of
# reinforcement are small: with the default, 1e-3, this backbone does not get back to where
# pre-training left it, and is rolled back (docs/research/index.md). Every defense may lose 3 points
# of original accuracy on about 1000 validation images; one is the standard error.
sophon='iterations=40,max_drop=0.03,beta=2e-4,ntr_steps=6,alpha=[1e-3,3e-3]'
strategies='strategies=[[adam@1e-4..1e-3,sgd@1e-2],[adam@1e-4..3e-3,momentum@1e-3..1e-1]]'
searches=("sophon-ice[$sophon,inner_steps=20,$strategies]"
    "sophon-klu[$sophon,inner_steps=20,$strategies]"
    "sophon-wide[$sophon,horizons=[10,30],$strategies]"
    'naive-ascent[max_drop=0.03,lr=[1e-4,3e-4],cap=[4.0,8.0]]'
    'repnoise[max_drop=0.03,lr=[3e-4,1e-4],alpha=1.0,beta=[4.0,1.0]]')
defenses=()
for search in "${searches[@]}"; do
    name=${search%%[*} document=$published/${search%%[*}.json
    if [ ! -f "$document" ]; then
        document=$out/$name.json
        [ -f "$document" ] || bench tune "$search" --configurations 2 --seeds 100 --out "$out"
    fi
    [ -f "$document" ] || { echo "no search of $name yet, and so nothing to run" && exit; }
    defenses+=(--defense "$("$python" -c 'import json, sys
print(json.load(open(sys.argv[1]))["chosen"]["selector"])' "$document")")
done
bench run "${defenses[@]}" --attack @light --attack @paper --seeds "$seeds" \
    --json "$out/seeds-$seeds.json"
