import assert from "node:assert/strict";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { loadEngine } from "../../../src/engine/index.ts";
import { openCheckpoint } from "../../../src/formats/checkpoint.ts";
import { loadPackedArrays, readPackedWeights } from "../../../src/formats/quantized-state.ts";
import { openSafetensors, readFloat32, readTensor } from "../../../src/formats/safetensors.ts";
import { readModelSpec } from "../../../src/models/index.ts";
import { blockLinears } from "../../../src/models/quantization.ts";
import { distance } from "../../support/models/distance.ts";
import { adapterDistance, goldenFlags, goldenRun, relative } from "../../support/models/golden.ts";
import {
  goldenWeights,
  WEIGHT_MODELS,
  type WeightModel,
  writeWeightModel,
} from "../../support/models/golden-weights.ts";
import { coordinator, events, readJson, temporaryFolder } from "../../support/processes/cli.ts";

const golden = goldenRun("qwen1-nf4");
const NF4 = ["--load-in-4bit", "--bnb-4bit-quant-type", "nf4", "--bnb-4bit-use-double-quant"];

const adapter = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));

async function succeed(args: readonly string[]) {
  const result = await coordinator(args);
  assert.equal(result.code, 0, result.stderr);
  return result;
}

async function losses(flags: readonly string[]): Promise<Record<string, number>[]> {
  const { stdout } = await succeed(flags);
  return (events(stdout, "log") as Record<string, number>[]).filter((entry) => entry["loss"] !== undefined);
}

test("qwen1-nf4: bitsandbytes' losses and adapter over 1, 2 and 4 workers, weights cached or not, the same bits", async (t) => {
  const root = temporaryFolder(t);
  for (const workers of [1, 2, 4]) {
    const output = join(root, String(workers));
    const cache = ["--weight-cache", workers === 4 ? "on" : "off"];
    const placement = ["--workers", String(workers), "--device-map", "balanced", ...cache];
    const logs = await losses(goldenFlags(golden, output, ...NF4, "--bnb-4bit-compute-dtype", "float32", ...placement));
    assert.equal(logs.length, golden.logHistory.length - 1);
    for (const [index, expected] of golden.logHistory.slice(0, -1).entries()) {
      const got = logs[index]!;
      assert.ok(relative(got["loss"]!, expected["loss"]!) < 1e-4, `step ${index + 1}: loss ${got["loss"]}`);
      assert.ok(relative(got["grad_norm"]!, expected["grad_norm"]!) < 1e-3, `step ${index + 1}: ${got["grad_norm"]}`);
    }
    assert.ok((await adapterDistance(output, join(golden.folder, "adapter_final"))) < 1e-2);
  }
  for (const workers of ["2", "4"]) assert.deepEqual(adapter(join(root, workers)), adapter(join(root, "1")));
});

test("8-bit training follows float32's loss within 1 %, on any placement with the same bits", async (t) => {
  const root = temporaryFolder(t);
  const plain = goldenRun("qwen1");
  const eight = (workers: string) =>
    losses(goldenFlags(plain, join(root, workers), "--load-in-8bit", "--workers", workers, "--device-map", "balanced"));
  const one = await eight("1");
  await eight("2");
  assert.deepEqual(adapter(join(root, "2")), adapter(join(root, "1")));
  assert.equal(one.length, plain.logHistory.length - 1);
  let differs = false;
  for (const [index, { loss }] of one.entries()) {
    const expected = plain.logHistory[index]!["loss"]!;
    assert.ok(relative(loss!, expected) < 0.01, `step ${index + 1}: ${loss}, in float32 ${expected}`);
    differs ||= relative(loss!, expected) > 1e-5;
  }
  assert.ok(differs, "the base was not quantised");
});

const FORMS: readonly { flags: string[]; key: string }[] = [
  { flags: ["--load-in-4bit", "--bnb-4bit-quant-type", "nf4"], key: "nf4.sq" },
  { flags: ["--bnb-4bit-quant-type", "nf4", "--bnb-4bit-use-double-quant"], key: "nf4.dq" },
  { flags: ["--load-in-4bit"], key: "fp4.sq" },
  { flags: ["--bnb-4bit-use-double-quant"], key: "fp4.dq" },
  { flags: ["--load-in-8bit"], key: "int8" },
];

for (const weight of Object.keys(WEIGHT_MODELS) as WeightModel[]) {
  for (const { flags, key } of FORMS) {
    // bitsandbytes' 8-bit vectors are of float16 weights.
    if (key === "int8" && weight !== "0") continue;
    test(`quantize writes what bitsandbytes does, key by key: weight ${weight}, ${key}`, async (t) => {
      const root = temporaryFolder(t);
      const linears = await writeWeightModel(join(root, "model"), weight);
      assert.ok(linears.length >= 5);
      const output = join(root, "quantized");
      await succeed(["quantize", "--model", join(root, "model"), "--output-dir", output, ...flags]);
      const expected = [...(await goldenWeights()).tensors].flatMap(([name, location]) => {
        if (!name.startsWith(`${weight}.${key}.`)) return [];
        const leaf = name.slice(`${weight}.${key}.`.length);
        if (leaf === "dequant") return [];
        const named = { packed: "weight", q: "weight", scb: "SCB" }[leaf] ?? leaf.replace(/^state/, "weight");
        return [[named, location] as const];
      });
      const checkpoint = await openCheckpoint(output);
      for (const linear of linears) {
        const written = checkpoint.names.filter((name) => name.startsWith(`${linear}.`));
        const format = key === "int8" ? [`${linear}.weight_format`] : [];
        assert.deepEqual(written.sort(), [...expected.map(([name]) => `${linear}.${name}`), ...format].sort());
        for (const [name, location] of expected) {
          const found = checkpoint.locate(`${linear}.${name}`);
          assert.equal(found.dtype, location.dtype, name);
          assert.deepEqual(await readTensor(found), await readTensor(location), `${linear}.${name}`);
        }
      }
      assert.deepEqual(checkpoint.locate(`${linears[0]}.weight`).shape, key === "int8" ? [64, 64] : packed(weight));
    });
  }
}

function packed(weight: WeightModel): [number, number] {
  const { hidden, heads } = WEIGHT_MODELS[weight];
  return [(heads * 16 * hidden) / 2, 1];
}

test("what quantize wrote, in shards, trains with a weight cache to the same bits as quantising while loading", async (t) => {
  const root = temporaryFolder(t);
  const { train, eight } = { train: join(root, "four"), eight: join(root, "eight") };
  const write = (dir: string, ...flags: string[]) =>
    succeed([
      "quantize",
      "--model",
      join(golden.folder, "model"),
      "--output-dir",
      dir,
      "--max-shard-size",
      "60KB",
      ...flags,
    ]);
  await write(train, ...NF4, "--bnb-4bit-compute-dtype", "float32");
  await write(eight, "--load-in-8bit");
  assert.ok(Object.keys(readJson(train, "model.safetensors.index.json")).includes("weight_map"));
  assert.match(readFileSync(join(train, "config.json"), "utf8"), /"llm_int8_threshold": 6\.0,/);
  for (const [model, flags] of [
    [train, NF4],
    [eight, ["--load-in-8bit"]],
  ] as const) {
    await losses(goldenFlags(golden, join(root, "loading"), ...flags, "--max-steps", "3", "--overwrite-output-dir"));
    const stored = [...goldenFlags(golden, join(root, "stored"), "--max-steps", "3", "--overwrite-output-dir")];
    stored[stored.indexOf("--model") + 1] = model;
    const { stdout } = await succeed([...stored, "--workers", "2", "--weight-cache", "on"]);
    const ranks = events(stdout, "predictions").flatMap(({ ranks: all }) => all as Record<string, number>[]);
    assert.equal(ranks.length, 2);
    for (const rank of ranks) assert.equal(rank["weight_bytes"], rank["predicted_weight_bytes"]);
    const { plan } = events(stdout, "plan")[0] as { plan: { devices: { memory: { weightCache: number } }[] } };
    assert.ok(plan.devices.every(({ memory }) => memory.weightCache > 0));
    assert.deepEqual(adapter(join(root, "stored")), adapter(join(root, "loading")));
  }
});

/** Every linear's values, float32, by path. */
async function linearValues(dir: string): Promise<Map<string, Float32Array>> {
  const spec = await readModelSpec(dir);
  const checkpoint = await openCheckpoint(dir);
  const linears = blockLinears(spec);
  const values = new Map<string, Float32Array>();
  if (spec.quantization === null) {
    for (const { name } of linears) values.set(name, await readFloat32(checkpoint.locate(`${name}.weight`)));
    return values;
  }
  const states = await readPackedWeights(checkpoint, linears, spec.quantization.settings, new Set(), "float32");
  for (const [name, state] of states) {
    const bytes = await loadEngine().dequantize(await loadPackedArrays(state), "float32", 1);
    values.set(name, new Float32Array(Uint8Array.from(bytes).buffer));
  }
  return values;
}

test("merging: exact onto the 16-bit checkpoint, rounded again onto a quantised one, which is said", async (t) => {
  const root = temporaryFolder(t);
  const model = join(golden.folder, "model");
  const flags = ["--adapter", join(golden.folder, "adapter_final"), "--output-dir"];
  await succeed(["merge", "--model", model, ...flags, join(root, "plain")]);
  await succeed(["quantize", "--model", model, "--output-dir", join(root, "nf4"), ...NF4]);
  await succeed(["quantize", "--model", model, "--output-dir", join(root, "int8"), "--load-in-8bit"]);
  const exact = await linearValues(join(root, "plain"));
  const base = await linearValues(model);
  const weights = await openSafetensors(join(golden.folder, "adapter_final", "adapter_model.safetensors"));
  const [name] = exact.keys();
  const sum = base.get(name!)!.slice();
  await loadEngine().addLowRank(
    new Uint8Array(sum.buffer),
    "float32",
    192,
    64,
    await readFloat32(weights.tensors.get(`base_model.model.${name}.lora_A.weight`)!),
    await readFloat32(weights.tensors.get(`base_model.model.${name}.lora_B.weight`)!),
    4,
  );
  assert.deepEqual(exact.get(name!), sum);
  // Rounding to a code of 16 levels, to one of 255.
  for (const [form, most] of [
    ["nf4", 0.15],
    ["int8", 0.015],
  ] as const) {
    const result = await succeed(["merge", "--model", join(root, form), ...flags, join(root, `${form}-merged`)]);
    assert.match(result.stderr, /rounded to its few bits again.*16-bit checkpoint/);
    const merged = await linearValues(join(root, `${form}-merged`));
    for (const [linear, values] of merged) {
      const far = distance(values, exact.get(linear)!);
      assert.ok(far < most && far > 1e-4, `${form} ${linear}: ${far}`);
    }
    const ids = ["--prompt-ids", "[5,6,7]", "--max-new-tokens", "2", "--json"];
    await succeed(["generate", "--model", join(root, `${form}-merged`), ...ids]);
  }
  // The flags quantise on the way what is stored in 32 bits: the same file as the base's own.
  const form = [...NF4, "--bnb-4bit-compute-dtype", "float32"];
  await succeed(["merge", "--model", model, ...form, ...flags, join(root, "flags")]);
  const file = (dir: string) => readFileSync(join(root, dir, "model.safetensors"));
  assert.deepEqual(file("flags"), file("nf4-merged"));
});

test("parameters and plan show packed shapes and dtypes", async () => {
  const model = [
    "--model",
    join(golden.folder, "model"),
    "--target-modules",
    "c_attn,c_proj",
    "--torch-dtype",
    "float16",
  ];
  const shown = async (...flags: string[]) => {
    const { stdout } = await succeed(["parameters", ...model, ...flags, "--json"]);
    const { parameters, total } = JSON.parse(stdout) as {
      parameters: { name: string; shape: number[]; dtype: string }[];
      total: number;
    };
    const plan = JSON.parse((await succeed(["plan", ...model, ...flags, "--json"])).stdout) as { parameters: unknown };
    assert.deepEqual(plan.parameters, parameters);
    return {
      total,
      by: (name: string) => parameters.find((parameter) => parameter.name === `base_model.model.${name}`)!,
    };
  };
  const four = await shown(...NF4);
  assert.deepEqual(four.by("transformer.h.0.attn.c_attn.base_layer.weight"), {
    ...{
      name: "base_model.model.transformer.h.0.attn.c_attn.base_layer.weight",
      shape: [(192 * 64) / 2, 1],
      dtype: "uint8",
    },
  });
  assert.equal(four.by("lm_head.weight").dtype, "float16");
  assert.equal(four.by("transformer.h.0.attn.c_attn.base_layer.bias").dtype, "float16");
  const eight = await shown("--load-in-8bit", "--llm-int8-skip-modules", "c_proj");
  const w1 = eight.by("transformer.h.1.mlp.w1.weight");
  assert.deepEqual([w1.shape, w1.dtype], [[128, 64], "int8"]);
  assert.equal(eight.by("transformer.h.1.mlp.c_proj.base_layer.weight").dtype, "float16");
  assert.equal(four.total, eight.total);
});

test("a compute dtype that CPUs lack: float32 with a warning, an error where it was insisted on", async (t) => {
  const flags = goldenFlags(
    golden,
    join(temporaryFolder(t), "out"),
    ...NF4,
    "--bnb-4bit-compute-dtype",
    "float16",
    "--max-steps",
    "1",
  );
  const compute = flags.indexOf("--compute-dtype");
  const { stderr } = await succeed(flags.toSpliced(compute, 2));
  assert.equal(stderr.match(/CPUs do not compute in float16/g)?.length, 1);
  const refused = await coordinator([...flags.with(compute + 1, "float16"), "--overwrite-output-dir"]);
  assert.equal(refused.code, 1);
  assert.match(refused.stderr, /PL_DEVICE_UNAVAILABLE.*float32 or bfloat16/s);
});

interface Case {
  readonly name: string;
  readonly code: string;
  readonly says: RegExp;
  /** Changes the folder of a quantised copy of the model, or the flags; null flags: as they are. */
  readonly arrange: (model: string) => Promise<string[]> | string[];
}

/** Rewrites one tensor's entry of a checkpoint's header, or its bytes. */
function editFile(
  model: string,
  edit: (header: Record<string, { dtype: string; shape: number[] }>, text: string) => string,
): void {
  const path = join(model, "model.safetensors");
  const file = readFileSync(path);
  const length = Number(file.readBigUInt64LE(0));
  const text = file.subarray(8, 8 + length).toString();
  const edited = edit(JSON.parse(text), text);
  assert.ok(edited !== text && Buffer.byteLength(edited) <= length, "the header must change and fit");
  writeFileSync(
    path,
    Buffer.concat([file.subarray(0, 8), Buffer.from(edited.padEnd(length)), file.subarray(8 + length)]),
  );
}

function editState(model: string, from: string, to: string): void {
  const path = join(model, "model.safetensors");
  const file = readFileSync(path);
  const at = file.indexOf(from, Number(file.readBigUInt64LE(0)));
  assert.ok(at > 0 && from.length === to.length);
  file.write(to, at);
  writeFileSync(path, file);
}

const FIRST = "transformer.h.0.attn.c_attn";
const CASES: readonly Case[] = [
  {
    name: "a state that is missing",
    code: "PL_QUANTIZATION_INVALID",
    says: /c_attn\.weight\.absmax is missing/,
    arrange: (model) => {
      editFile(model, (_, text) => text.replace(`"${FIRST}.weight.absmax"`, `"${FIRST}.weight.absmox"`));
      return [];
    },
  },
  {
    name: "an odd block size",
    code: "PL_QUANTIZATION_INVALID",
    says: /blocksize is 63, expected a power of two from 32 to 4096/,
    arrange: (model) => {
      editState(model, '"blocksize": 64', '"blocksize": 63');
      return [];
    },
  },
  {
    name: "a block size that contradicts the scales",
    code: "PL_QUANTIZATION_INVALID",
    says: /absmax is uint8 \[192\], expected uint8 \[384\]/,
    arrange: (model) => {
      editState(model, '"blocksize": 64', '"blocksize": 32');
      return [];
    },
  },
  {
    name: "a shape that contradicts config.json",
    code: "PL_QUANTIZATION_INVALID",
    says: /shape is \[192,46\], expected \[192,64\]/,
    arrange: (model) => {
      editState(model, '"shape": [192, 64]', '"shape": [192, 46]');
      return [];
    },
  },
  {
    name: "a map of codes that is not nf4's",
    code: "PL_QUANTIZATION_INVALID",
    says: /quant_map/,
    arrange: async (model) => {
      const { tensors, path } = await openSafetensors(join(model, "model.safetensors"));
      const file = readFileSync(path);
      file.writeFloatLE(0.5, tensors.get(`${FIRST}.weight.quant_map`)!.offset);
      writeFileSync(path, file);
      return [];
    },
  },
  {
    name: "a quantised checkpoint whose config.json does not say so",
    code: "PL_QUANTIZATION_INVALID",
    says: /no quantization_config/,
    arrange: (model) => {
      const { quantization_config: _, ...config } = readJson(model, "config.json");
      writeFileSync(join(model, "config.json"), JSON.stringify(config));
      return [];
    },
  },
  {
    name: "the other form than the checkpoint's",
    code: "PL_CONFIG_INVALID",
    says: /--load-in-8bit was given, but the checkpoint is quantised in 4 bits/,
    arrange: () => ["--load-in-8bit"],
  },
  {
    name: "both forms at once",
    code: "PL_CONFIG_INVALID",
    says: /--load-in-4bit and --load-in-8bit contradict each other/,
    arrange: () => ["--load-in-8bit", "--load-in-4bit"],
  },
  {
    name: "a NaN in a weight",
    code: "PL_QUANTIZATION_INVALID",
    says: /transformer\.h\.1\.mlp\.w2\.weight: row 2, column 3 is NaN or infinite/,
    arrange: async (model) => {
      cpSync(join(golden.folder, "model"), model, { recursive: true, force: true });
      const { tensors, path } = await openSafetensors(join(model, "model.safetensors"));
      const file = readFileSync(path);
      file.writeFloatLE(Number.NaN, tensors.get("transformer.h.1.mlp.w2.weight")!.offset + 4 * (2 * 64 + 3));
      writeFileSync(path, file);
      return NF4;
    },
  },
];

for (const { name, code, says, arrange } of CASES) {
  test(`refused: ${name}`, async (t) => {
    const root = temporaryFolder(t);
    const model = join(root, "model");
    await succeed(["quantize", "--model", join(golden.folder, "model"), "--output-dir", model, ...NF4]);
    const flags = goldenFlags(golden, join(root, "out"), ...(await arrange(model)), "--max-steps", "1");
    flags[flags.indexOf("--model") + 1] = model;
    const { code: status, stderr } = await coordinator(flags);
    assert.equal(status, 1);
    const { error } = JSON.parse(stderr.trim().split("\n").at(-1)!) as {
      error: { code: string; message: string; hint: string };
    };
    assert.equal(error.code, code, stderr);
    assert.match(error.message, says);
    assert.ok(error.hint.length > 0);
  });
}
