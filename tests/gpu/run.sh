#!/bin/bash
# On a GPU machine without network: unpacks what was carried (node, modules, dist, addon), then runs golden runs on the GPU,
# LoRA on stories260k, and peft's reading of that adapter. usage: run.sh CARRIED_FOLDER
set -u
carried=$1
tools=${TOOLS:-$(mktemp -d)}
mkdir -p "$tools"
xz -dc "$carried/node.xz" >"$tools/node" && chmod +x "$tools/node"
tar xJf "$carried/libs.tar.xz" -C "$tools"
tar xJf "$carried/modules.tar.xz"
tar xJf "$carried/dist.tar.xz"
mkdir -p build/native && cp "$carried/pipelora.node" build/native/
node() { LD_LIBRARY_PATH=$tools "$tools/node" "$@"; }
status=0

node -e 'console.log(JSON.stringify(require("./build/native/pipelora.node").capabilities()))' || exit 1
LD_LIBRARY_PATH=$tools timeout 240 "$tools/node" tests/gpu/goldens.mjs || status=1
LD_LIBRARY_PATH=$tools timeout 120 "$tools/node" tests/gpu/nccl.mjs || status=1

model=$carried/stories260k
texts='{"text":"The little fox had a red hat. The fox lost the hat in the wind."}
{"text":"A small boat went over the lake. The boat came home at night."}
{"text":"Mia had a green ball. She gave the ball to her dog, and the dog was happy."}'
echo "$texts" >"$tools/texts.jsonl"
coordinator() { node dist/cli/coordinator.js "$@" --log-level warn; }
coordinator tokenize --model "$model" --input "$tools/texts.jsonl" | sed 's/"ids"/"input_ids"/' >"$tools/rows.jsonl"
coordinator --model "$model" --dataset "$tools/rows.jsonl" --output-dir "$tools/adapter" --num-train-epochs 30 \
  --learning-rate 5e-3 --logging-steps 10 --json | grep '"event":"log"' || status=1
prompt='[1, 403, 407, 261, 378]'
node tests/gpu/logits.mjs "$model" "$tools/adapter" cuda:0 "$prompt" >"$tools/logits.json" || status=1
python3 tests/gpu/check_peft.py "$model" "$tools/adapter" "$tools/logits.json" "$prompt" 2>&1 | tail -3
[ "${PIPESTATUS[0]}" = 0 ] || status=1
exit $status
