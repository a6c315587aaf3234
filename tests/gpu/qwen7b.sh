#!/bin/bash
# The tutorial's 4-bit run at Qwen-7B's shape through the command line: random weights written to disk, loaded and quantised
# on the GPU, trained on the given rows of ids with and without checkpointing, then with a weight cache. After run.sh has
# unpacked. usage: qwen7b.sh CONFIG.json ROWS.jsonl NODE_FOLDER
set -u
config=$1 rows=$2 tools=$3
coordinator() { LD_LIBRARY_PATH=$tools "$tools/node" dist/cli/coordinator.js "$@"; }
model=$(mktemp -d)
started=$(date +%s%N)
coordinator init-model --config "$config" --torch-dtype bfloat16 --output-dir "$model" || exit 1
echo "init-model: $((($(date +%s%N) - started) / 1000000)) ms, $(du -sh "$model" | cut -f1)"
for settings in "--gradient-checkpointing --weight-cache off" "--gradient-checkpointing false --weight-cache off" "--gradient-checkpointing false"; do
  # shellcheck disable=SC2086
  coordinator --model "$model" --dataset "$rows" --output-dir "$model/out" --overwrite-output-dir --load-in-4bit \
    --bnb-4bit-quant-type nf4 --bnb-4bit-use-double-quant --compute-dtype bfloat16 --torch-dtype bfloat16 \
    --target-modules c_attn,c_proj,w1,w2 --lora-r 8 --lora-alpha 32 --lora-dropout 0.1 --per-device-train-batch-size 8 \
    --gradient-accumulation-steps 2 --max-steps 60 --learning-rate 1e-4 --logging-steps 10 --save-strategy no \
    --log-level debug --disable-tqdm $settings 2>&1 | grep -vE "^ *$|step_time" | cut -c1-220
done
