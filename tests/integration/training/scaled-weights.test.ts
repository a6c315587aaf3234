import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { type Checkpoint, openCheckpoint } from "../../../src/formats/checkpoint.ts";
import { writeCheckpoint } from "../../../src/formats/checkpoint-writer.ts";
import { fromFloat32 } from "../../../src/formats/half.ts";
import { float32Bytes, readFloat32, readTensor, type TensorToWrite } from "../../../src/formats/safetensors.ts";
import { lastLogits, wholeModel } from "../../support/models/one-engine.ts";
import { coordinator, readJson, temporaryFolder } from "../../support/processes/cli.ts";

const SIZES = {
  hidden_size: 72,
  intermediate_size: 104,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 16,
  vocab_size: 120,
  torch_dtype: "bfloat16",
  initializer_range: 0.1,
};
const DENSE = { ...SIZES, model_type: "qwen3" };
const EXPERTS = {
  ...SIZES,
  model_type: "qwen3_moe",
  num_experts: 4,
  num_experts_per_tok: 2,
  moe_intermediate_size: 40,
  norm_topk_prob: true,
};
const IDS = [5, 17, 99, 3, 40, 41, 42, 7];

/** What a code of e4m3 stands for, by its definition. */
function e4m3Of(code: number): number {
  const [exponent, fraction] = [(code >> 3) & 15, code & 7];
  const magnitude = exponent === 0 ? fraction * 2 ** -9 : (8 + fraction) * 2 ** (exponent - 10);
  return code < 128 ? magnitude : -magnitude;
}
const CODES = Array.from({ length: 256 }, (_, code) => code).filter((code) => (code & 127) !== 127);

/** The nearest code; of two the even one. */
function codeOf(value: number): number {
  const distance = (code: number) => Math.abs(e4m3Of(code) - value);
  return CODES.reduce((best, code) =>
    distance(code) < distance(best) || (distance(code) === distance(best) && code % 2 === 0) ? code : best,
  );
}

interface Form {
  readonly name: string;
  readonly config: object;
  /** Of a weight's scales. */
  readonly block: (out: number, input: number) => readonly [number, number];
  readonly scales: { readonly suffix: string; readonly dtype: "float32" | "bfloat16" };
  readonly shape: (down: number, across: number) => readonly number[];
}
const groups = (weights: object) => ({
  quantization_config: {
    quant_method: "compressed-tensors",
    format: "float-quantized",
    config_groups: { group_0: { weights: { num_bits: 8, type: "float", ...weights }, targets: ["Linear"] } },
    ignore: ["lm_head"],
  },
});
const FORMS: readonly Form[] = [
  {
    name: "blocks of 16 x 24, weight_scale_inv",
    config: {
      quantization_config: { quant_method: "fp8", activation_scheme: "dynamic", weight_block_size: [16, 24] },
    },
    block: () => [16, 24],
    scales: { suffix: "_scale_inv", dtype: "float32" },
    shape: (down, across) => [down, across],
  },
  {
    name: "a scale a row, in bfloat16",
    config: groups({ strategy: "channel" }),
    block: (_, input) => [1, input],
    scales: { suffix: "_scale", dtype: "bfloat16" },
    shape: (down) => [down, 1],
  },
  {
    name: "a scale a tensor",
    config: groups({ strategy: "tensor" }),
    block: (out, input) => [out, input],
    scales: { suffix: "_scale", dtype: "float32" },
    shape: () => [1],
  },
];

/** Writes the checkpoint with its projections in e4m3, and beside it what they stand for in bfloat16. */
async function writeBoth(model: string, files: Checkpoint, form: Form, root: string): Promise<[string, string]> {
  const stored: TensorToWrite[] = [];
  const plain: TensorToWrite[] = [];
  const add = (
    to: TensorToWrite[],
    name: string,
    dtype: TensorToWrite["dtype"],
    shape: readonly number[],
    bytes: Uint8Array,
  ) => to.push({ name, dtype, shape, data: () => bytes });
  for (const name of files.names) {
    const location = files.locate(name);
    if (!name.endsWith("_proj.weight")) {
      for (const to of [stored, plain]) to.push({ ...location, name, data: () => readTensor(location) });
      continue;
    }
    const [out, input] = location.shape as [number, number];
    const values = await readFloat32(location);
    const [rows, columns] = form.block(out, input);
    const [down, across] = [Math.ceil(out / rows), Math.ceil(input / columns)];
    const blockOf = (i: number) =>
      Math.floor(Math.floor(i / input) / rows) * across + Math.floor((i % input) / columns);
    const largest = new Float32Array(down * across);
    values.forEach((value, i) => {
      largest[blockOf(i)] = Math.max(largest[blockOf(i)]!, Math.abs(value));
    });
    const scales = largest.map((value) => Math.fround(value / 448));
    if (form.scales.dtype === "bfloat16") scales.set(scales.map((scale) => bfloat16(scale)));
    const codes = Uint8Array.from(values, (value, i) => codeOf(value / scales[blockOf(i)]!));
    const expected = Float32Array.from(codes, (code, i) => Math.fround(e4m3Of(code) * scales[blockOf(i)]!));
    add(stored, name, "float8_e4m3fn", location.shape, codes);
    const bytes = form.scales.dtype === "float32" ? float32Bytes(scales) : fromFloat32(scales, "bfloat16");
    add(stored, `${name}${form.scales.suffix}`, form.scales.dtype, form.shape(down, across), bytes);
    add(plain, name, "bfloat16", location.shape, fromFloat32(expected, "bfloat16"));
  }
  const config = readJson(model, "config.json");
  const folders: [string, string] = [join(root, "stored"), join(root, "plain")];
  for (const [index, tensors] of [stored, plain].entries()) {
    const dir = folders[index]!;
    mkdirSync(dir);
    await writeCheckpoint(dir, tensors, "1GB");
    writeFileSync(join(dir, "config.json"), JSON.stringify(index === 0 ? { ...config, ...form.config } : config));
  }
  return folders;
}

function bfloat16(value: number): number {
  const word = new Uint32Array(Float32Array.of(value).buffer)[0]!;
  const upper = ((word + 0x7fff + ((word >>> 16) & 1)) >>> 16) << 16;
  return new Float32Array(Uint32Array.of(upper).buffer)[0]!;
}

async function logits(model: string): Promise<Float32Array> {
  const engine = await wholeModel(model, null);
  const values = await lastLogits(engine, IDS);
  await engine.close();
  return values;
}

for (const [config, forms] of [
  [DENSE, FORMS],
  [EXPERTS, FORMS.slice(0, 1)],
] as const) {
  for (const form of forms) {
    test(`${config.model_type} stored in e4m3, ${form.name}: the bits of what it stands for`, async (t) => {
      const root = temporaryFolder(t);
      writeFileSync(join(root, "given.json"), JSON.stringify(config));
      const model = join(root, "model");
      const made = await coordinator(["init-model", "--config", join(root, "given.json"), "--output-dir", model]);
      assert.equal(made.code, 0, made.stderr);
      const [stored, plain] = await writeBoth(model, await openCheckpoint(model), form, root);
      assert.deepEqual(await logits(stored), await logits(plain));
      const [a, b] = [await openCheckpoint(stored), await openCheckpoint(plain)];
      assert.deepEqual([...a.names].sort(), [...b.names].sort());
      for (const name of a.names) {
        assert.deepEqual(await readTensor(a.locate(name)), await readTensor(b.locate(name)), name);
      }
    });
  }
}

test("scales that are missing, of another shape or another dtype, and other forms of compressed-tensors are refused by name", async (t) => {
  const root = temporaryFolder(t);
  writeFileSync(join(root, "given.json"), JSON.stringify(DENSE));
  const model = join(root, "model");
  await coordinator(["init-model", "--config", join(root, "given.json"), "--output-dir", model]);
  const [stored] = await writeBoth(model, await openCheckpoint(model), FORMS[0]!, root);
  const config = readJson(stored, "config.json");
  const parameters = async (changed: object) => {
    writeFileSync(join(stored, "config.json"), JSON.stringify({ ...config, ...changed }));
    return coordinator(["generate", "--model", stored, "--prompt", "x", "--raw"]);
  };
  const blocks = await parameters({ quantization_config: { quant_method: "fp8", weight_block_size: [32, 24] } });
  assert.match(blocks.stderr, /PL_QUANTIZATION_INVALID.*_proj\.weight_scale_inv has shape/s);
  assert.notEqual(blocks.code, 0);
  const integers = await parameters(groups({ num_bits: 4, type: "int" }));
  assert.match(integers.stderr, /PL_MODEL_UNSUPPORTED.*group_0\.weights.*4-bit int/s);
  const awq = await parameters({ quantization_config: { quant_method: "awq" } });
  assert.match(awq.stderr, /PL_MODEL_UNSUPPORTED.*quant_method.*awq/s);
  // A weight whose scales have gone.
  const files = readFileSync(join(stored, "model.safetensors"));
  writeFileSync(
    join(stored, "model.safetensors"),
    Buffer.from(files.toString("latin1").replaceAll("_scale_inv", "_scale_old"), "latin1"),
  );
  const gone = await parameters({});
  assert.match(gone.stderr, /PL_QUANTIZATION_INVALID.*neither .*_scale_inv nor .*_scale is there/s);
});
