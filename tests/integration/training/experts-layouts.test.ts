import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { openCheckpoint } from "../../../src/formats/checkpoint.ts";
import { writeCheckpoint } from "../../../src/formats/checkpoint-writer.ts";
import { float32Bytes, readFloat32, readTensor } from "../../../src/formats/safetensors.ts";
import { expertStacks, modelExperts, ofExpert } from "../../../src/models/experts.ts";
import { readModelSpec } from "../../../src/models/index.ts";
import { distance } from "../../support/models/distance.ts";
import { lastLogits, wholeModel } from "../../support/models/one-engine.ts";
import { coordinator, events, readJson, temporaryFolder } from "../../support/processes/cli.ts";

const SIZES = {
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 16,
  vocab_size: 120,
  torch_dtype: "float32",
  initializer_range: 0.1,
};
const QWEN = {
  ...SIZES,
  ...{
    model_type: "qwen3_moe",
    num_experts: 6,
    num_experts_per_tok: 2,
    moe_intermediate_size: 32,
    norm_topk_prob: true,
  },
};
const MIXTRAL = { ...SIZES, model_type: "mixtral", num_local_experts: 4, num_experts_per_tok: 2 };
const GPT_OSS = { ...SIZES, model_type: "gpt_oss", num_local_experts: 4, num_experts_per_tok: 2, sliding_window: 4 };
const LLAMA4 = {
  ...{ ...SIZES, model_type: "llama4_text", num_local_experts: 4, num_experts_per_tok: 1 },
  ...{ intermediate_size_mlp: 80, interleave_moe_layer_step: 2, attention_chunk_size: 4 },
};
const IDS = [5, 17, 99, 3, 40, 41, 42, 7];

async function run(args: string[]): Promise<string> {
  const result = await coordinator([...args, "--log-level", "warn"]);
  assert.equal(result.code, 0, result.stderr);
  return result.stdout;
}

async function initialised(t: TestContext, config: object): Promise<string> {
  const root = temporaryFolder(t);
  writeFileSync(join(root, "given.json"), JSON.stringify(config));
  const dir = join(root, "model");
  await run(["init-model", "--config", join(root, "given.json"), "--output-dir", dir, "--seed", "3"]);
  return dir;
}

async function logits(model: string, adapter: string | null = null): Promise<Float32Array> {
  const engine = await wholeModel(model, adapter);
  const values = await lastLogits(engine, IDS);
  await engine.close();
  return values;
}

const rows = (dir: string): string => {
  const path = join(dir, "rows.jsonl");
  const row = (start: number) => {
    const input_ids = Array.from({ length: 12 }, (_, i) => (start * 31 + i * 7) % 120);
    return JSON.stringify({ input_ids, labels: input_ids });
  };
  writeFileSync(path, Array.from({ length: 8 }, (_, index) => row(index)).join("\n"));
  return path;
};

for (const config of [QWEN, MIXTRAL]) {
  test(`${config.model_type}: experts apart or at once in the checkpoint, the same logits`, async (t) => {
    const apart = await initialised(t, config);
    const spec = await readModelSpec(apart);
    const files = await openCheckpoint(apart);
    const stacks = modelExperts(spec).flatMap(expertStacks);
    const pieces = new Set(
      stacks.flatMap(({ shape, parts }) =>
        Array.from({ length: shape[0]! }, (_, expert) => parts.map(({ name }) => ofExpert(name, expert))).flat(),
      ),
    );
    const together = temporaryFolder(t);
    await writeCheckpoint(
      together,
      [
        ...files.names
          .filter((name) => !pieces.has(name))
          .map((name) => ({ ...files.locate(name), name, data: () => readTensor(files.locate(name)) })),
        ...stacks.map(({ name, shape, parts }) => ({
          ...{ name, shape, dtype: "float32" as const },
          data: async () => {
            const all: Float32Array[] = [];
            for (let expert = 0; expert < shape[0]!; expert++) {
              for (const part of parts) all.push(await readFloat32(files.locate(ofExpert(part.name, expert))));
            }
            return Buffer.concat(all.map((values) => float32Bytes(values)));
          },
        })),
      ],
      "1GB",
    );
    writeFileSync(join(together, "config.json"), readFileSync(join(apart, "config.json")));
    assert.deepEqual(await logits(together), await logits(apart));
    // What is wrong is named before anything is loaded.
    const spoilt = { ...config, ...(config.model_type === "mixtral" ? { num_local_experts: 5 } : { num_experts: 5 }) };
    writeFileSync(join(together, "config.json"), JSON.stringify(spoilt));
    const refused = await coordinator([
      "train",
      "--model",
      together,
      "--dataset",
      rows(together),
      "--target-modules",
      "q_proj",
      "--output-dir",
      temporaryFolder(t),
    ]);
    assert.match(refused.stderr, /PL_TENSOR_MISMATCH.*experts.*has shape \[[46], /s);
  });
}

test("gpt_oss: MXFP4 stays packed and means what its expanded values mean", async (t) => {
  const packed = await initialised(t, { ...GPT_OSS, quantization_config: { quant_method: "mxfp4" } });
  const spec = await readModelSpec(packed);
  const files = await openCheckpoint(packed);
  const stacks = modelExperts(spec).flatMap(expertStacks);
  const weights = stacks.filter((stack) => stack.in !== null);
  assert.ok(weights.every(({ name }) => files.has(`${name}_blocks`) && !files.has(name)));
  const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
  const expanded = temporaryFolder(t);
  await writeCheckpoint(
    expanded,
    [
      ...files.names
        .filter((name) => !/_(blocks|scales)$/.test(name))
        .map((name) => ({ ...files.locate(name), name, data: () => readTensor(files.locate(name)) })),
      ...weights.map(({ name, shape }) => ({
        ...{ name, shape, dtype: "float32" as const },
        data: async () => {
          const [codes, scales] = [
            await readTensor(files.locate(`${name}_blocks`)),
            await readTensor(files.locate(`${name}_scales`)),
          ];
          const [experts, input, out] = shape as [number, number, number];
          const values = new Float32Array(experts * input * out);
          for (let i = 0; i < values.length; i++) {
            const code = i % 2 === 0 ? codes[i >> 1]! & 15 : codes[i >> 1]! >> 4;
            const value = (code >= 8 ? -1 : 1) * E2M1[code & 7]! * 2 ** (scales[Math.floor(i / 32)]! - 127);
            const [expert, o, k] = [Math.floor(i / (out * input)), Math.floor(i / input) % out, i % input];
            values[(expert * input + k) * out + o] = value;
          }
          return float32Bytes(values);
        },
      })),
    ],
    "1GB",
  );
  writeFileSync(join(expanded, "config.json"), JSON.stringify(GPT_OSS));
  assert.ok(distance(await logits(packed), await logits(expanded)) < 1e-6);
  // Either file under the other's configuration is refused by name.
  writeFileSync(
    join(expanded, "config.json"),
    JSON.stringify({ ...GPT_OSS, quantization_config: { quant_method: "mxfp4" } }),
  );
  const refused = await coordinator([
    "generate",
    "--model",
    expanded,
    "--prompt-ids",
    "[1,2]",
    "--max-new-tokens",
    "1",
  ]);
  assert.match(refused.stderr, /PL_TENSOR_MISMATCH.*gate_up_proj_blocks is missing/s);
});

for (const [name, config, flags] of [
  ["qwen3_moe in nf4", QWEN, ["--load-in-4bit", "--bnb-4bit-quant-type", "nf4", "--bnb-4bit-use-double-quant"]],
  ["mixtral in 8 bits", MIXTRAL, ["--load-in-8bit"]],
  ["gpt_oss in MXFP4 and nf4", { ...GPT_OSS, quantization_config: { quant_method: "mxfp4" } }, ["--load-in-4bit"]],
] as const) {
  test(`${name}: adapters of experts over 1 and 2 workers, checkpointing or not, the same bits`, async (t) => {
    const model = await initialised(t, config);
    const root = temporaryFolder(t);
    const trained = async (output: string, ...more: string[]) => {
      const stdout = await run([
        ...["train", "--model", model, "--dataset", rows(root), "--output-dir", join(root, output), "--json"],
        ...[
          "--target-modules",
          "q_proj,o_proj",
          "--target-parameters",
          "mlp.experts.gate_up_proj,mlp.experts.down_proj",
        ],
        ...[
          "--max-steps",
          "3",
          "--logging-steps",
          "1",
          "--learning-rate",
          "0.01",
          "--lora-r",
          "2",
          "--compute-dtype",
          "float32",
        ],
        ...flags,
        ...more,
      ]);
      const losses = (events(stdout, "log") as Record<string, number>[]).map((log) => log["loss"]).slice(0, 3);
      assert.ok(losses.every((loss) => Number.isFinite(loss)));
      return readFileSync(join(root, output, "adapter_model.safetensors"));
    };
    const one = await trained("one", "--workers", "1");
    assert.deepEqual(await trained("two", "--workers", "2", "--device-map", "balanced"), one);
    assert.deepEqual(await trained("again", "--workers", "2", "--gradient-checkpointing"), one);
  });
}

test("quantize writes each expert's linears, which load as they were quantised when loaded", async (t) => {
  const model = await initialised(t, QWEN);
  const output = join(temporaryFolder(t), "nf4");
  await run(["quantize", "--model", model, "--output-dir", output]);
  const files = await openCheckpoint(output);
  assert.equal(files.locate("model.layers.1.mlp.experts.5.down_proj.weight").dtype, "uint8");
  assert.equal(files.locate("model.layers.1.mlp.gate.weight").dtype, "float32");
  const generate = async (dir: string, ...flags: string[]) =>
    run([
      "generate",
      "--model",
      dir,
      "--prompt-ids",
      JSON.stringify(IDS),
      "--max-new-tokens",
      "12",
      "--stop-ids",
      "[]",
      "--json",
      "--compute-dtype",
      "float32",
      ...flags,
    ]);
  assert.equal(await generate(output), await generate(model, "--load-in-4bit"));
  const oss = await initialised(t, GPT_OSS);
  const refused = await coordinator(["quantize", "--model", oss, "--output-dir", join(temporaryFolder(t), "oss")]);
  assert.match(refused.stderr, /PL_CONFIG_INVALID.*all experts in one parameter/s);
});

for (const config of [QWEN, MIXTRAL, GPT_OSS, LLAMA4]) {
  test(`${config.model_type}: merged experts and routers are what base and adapter are together`, async (t) => {
    const model = await initialised(t, config);
    const root = temporaryFolder(t);
    const router =
      { gpt_oss: "mlp.router.weight", llama4_text: "feed_forward.router.weight" }[config.model_type] ??
      "mlp.gate.weight";
    await run([
      ...["train", "--model", model, "--dataset", rows(root), "--output-dir", join(root, "adapter")],
      ...["--target-modules", "v_proj", "--target-parameters", `experts.gate_up_proj,experts.down_proj,${router}`],
      ...["--max-steps", "3", "--learning-rate", "0.03", "--init-lora-weights", "false", "--compute-dtype", "float32"],
    ]);
    const merged = join(root, "merged");
    await run(["merge", "--model", model, "--adapter", join(root, "adapter"), "--output-dir", merged]);
    assert.deepEqual([...(await openCheckpoint(merged)).names].sort(), [...(await openCheckpoint(model)).names].sort());
    const together = await logits(model, join(root, "adapter"));
    assert.ok(distance(together, await logits(model)) > 1e-2);
    assert.ok(distance(await logits(merged), together) < 1e-5);
    const stored = readJson<{ target_parameters: string[] }>(join(root, "adapter"), "adapter_config.json");
    assert.equal(stored.target_parameters.length, 3);
  });
}

test("adapters of experts: a resumed run ends with the undisturbed run's bits", async (t) => {
  const model = await initialised(t, QWEN);
  const root = temporaryFolder(t);
  const train = async (output: string, ...more: string[]) => {
    await run([
      ...["train", "--model", model, "--dataset", rows(root), "--output-dir", join(root, output)],
      ...["--target-modules", "q_proj", "--target-parameters", "experts.gate_up_proj,experts.down_proj"],
      ...["--per-device-train-batch-size", "2", "--gradient-accumulation-steps", "2", "--save-steps", "2"],
      ...["--learning-rate", "0.01", "--lora-r", "2", "--compute-dtype", "float32"],
      ...more,
    ]);
    return readFileSync(join(root, output, "adapter_model.safetensors"));
  };
  const whole = await train("whole", "--max-steps", "4", "--lr-scheduler-type", "constant");
  await train("parts", "--max-steps", "2", "--lr-scheduler-type", "constant");
  const resumed = await train(
    "parts",
    "--max-steps",
    "4",
    "--lr-scheduler-type",
    "constant",
    "--resume-from-checkpoint",
    "--workers",
    "2",
  );
  assert.ok(resumed.equals(whole));
});
