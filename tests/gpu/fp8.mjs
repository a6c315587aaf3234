// Products in e4m3 beside those in 16 bits: a model that has learned something goes on learning, a 7B shape of random weights does, gradients
// point the same way, and the same bits come out whatever the placement. Exits 1 where a limit is passed.
// usage: fp8.mjs STORIES_FOLDER [SHAPE_CONFIG]   (the 260K stories model; a config.json for fifty steps of random weights)
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { loadEngine } from "../../dist/engine/index.js";
import { adapterMatrices, openAdapter } from "../../dist/formats/adapter.js";
import { openCheckpoint } from "../../dist/formats/checkpoint.js";
import { readModelSpec } from "../../dist/models/index.js";
import { resolveLoraTargets } from "../../dist/models/lora-targets.js";
import { describeSegment, engineArch } from "../../dist/worker/segments.js";
import { coordinator, events, folder, train } from "./runs.mjs";

const [stories, shape] = process.argv.slice(2);
let failed = 0;
function require(what, good, figures) {
  console.log(JSON.stringify({ check: what, good, ...figures }));
  if (!good) failed += 1;
}

/** The stories model with four neurons more in each MLP that never fire: the same function, in widths that e4m3 takes (172 is none). */
function widened() {
  const to = join(folder, "stories");
  mkdirSync(to);
  const config = JSON.parse(readFileSync(join(stories, "config.json"), "utf8"));
  const [narrow, wide, hidden] = [
    config.intermediate_size,
    Math.ceil(config.intermediate_size / 16) * 16,
    config.hidden_size,
  ];
  writeFileSync(join(to, "config.json"), JSON.stringify({ ...config, intermediate_size: wide }));
  for (const name of ["tokenizer.json", "tokenizer_config.json"]) copyFileSync(join(stories, name), join(to, name));
  const file = readFileSync(join(stories, "model.safetensors"));
  const length = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.subarray(8, 8 + length).toString());
  const parts = [];
  let at = 0;
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const [begin, end] = entry.data_offsets;
    let bytes = file.subarray(8 + length + begin, 8 + length + end);
    const size = bytes.length / entry.shape.reduce((a, b) => a * b, 1);
    if (/gate_proj|up_proj/.test(name)) {
      bytes = Buffer.concat([bytes, Buffer.alloc((wide - narrow) * hidden * size)]);
      entry.shape = [wide, hidden];
    } else if (/down_proj/.test(name)) {
      const rows = Array.from({ length: hidden }, (_, row) =>
        bytes.subarray(row * narrow * size, (row + 1) * narrow * size),
      );
      bytes = Buffer.concat(rows.flatMap((row) => [row, Buffer.alloc((wide - narrow) * size)]));
      entry.shape = [hidden, wide];
    }
    entry.data_offsets = [at, at + bytes.length];
    at += bytes.length;
    parts.push(bytes);
  }
  const text = Buffer.from(JSON.stringify(header));
  const head = Buffer.alloc(8);
  head.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(join(to, "model.safetensors"), Buffer.concat([head, text, ...parts]));
  return to;
}

/** Little stories of a few words that are drawn anew for each. */
function texts(count, seed) {
  let state = seed;
  const draw = (list) => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return list[(state >> 8) % list.length];
  };
  const line = () => {
    const name = draw(["Mia", "Tom", "Lily", "Ben", "Sue"]);
    const thing = draw(["ball", "hat", "boat", "cake", "kite", "book"]);
    const place = draw(["park", "garden", "house", "lake", "forest"]);
    const friend = draw(["dog", "cat", "bird", "mom", "fox"]);
    const feeling = draw(["happy", "sad", "glad", "tired"]);
    return (
      `One day, ${name} found a ${draw(["red", "blue", "big", "small"])} ${thing} in the ${place}. ${name} showed the ${thing} to the ${friend}. ` +
      `The ${friend} was ${feeling}. They played with the ${thing} until the sun went down, and then they went home.`
    );
  };
  return Array.from({ length: count }, () => `${JSON.stringify({ text: line() })}\n`).join("");
}

const model = widened();
writeFileSync(join(folder, "train.jsonl"), texts(1000, 7));
writeFileSync(join(folder, "held-out.jsonl"), texts(200, 99991));
const learning = [
  ...["--model", model, "--dataset", join(folder, "train.jsonl"), "--target-modules", "all-linear", "--lora-r", "8"],
  ...["--compute-dtype", "bfloat16", "--per-device-train-batch-size", "8", "--learning-rate", "2e-3"],
];
const sha = (output) =>
  createHash("sha256")
    .update(readFileSync(join(output, "adapter_model.safetensors")))
    .digest("hex");

// 200 steps: the last losses and the held-out one.
const final = {};
for (const way of ["bf16", "fp8"]) {
  const output = join(folder, way);
  const stdout = train([
    ...[...learning, "--max-steps", "200", "--logging-steps", "10", "--output-dir", output, "--eval-strategy", "steps"],
    ...["--eval-steps", "200", "--eval-dataset", join(folder, "held-out.jsonl"), ...(way === "fp8" ? ["--fp8"] : [])],
  ]);
  const logs = events(stdout, "log");
  const losses = logs.map(({ loss }) => loss).filter((loss) => loss !== undefined);
  const held = logs.map(({ eval_loss }) => eval_loss).filter((loss) => loss !== undefined);
  final[way] = { first: losses[0], last: losses.at(-1), heldOut: held.at(-1) };
}
const apart = (a, b) => Math.abs(a / b - 1);
require("200 steps of the stories model: final and held-out loss within 1 %", apart(final.fp8.last, final.bf16.last) <
  0.01 &&
  apart(final.fp8.heldOut, final.bf16.heldOut) < 0.01 &&
  final.bf16.last < final.bf16.first, final);

// The same bits over one worker and two, with blocks kept or computed again.
{
  const of = (name, flags, workers) => {
    const output = join(folder, name);
    const steps = [
      "--max-steps",
      "6",
      "--fp8",
      "--deterministic-batches",
      "--lora-dropout",
      "0.1",
      "--output-dir",
      output,
    ];
    train([...learning, ...steps, ...flags], workers);
    return sha(output);
  };
  const all = [of("one", [], 1), of("two", [], 2), of("again", ["--gradient-checkpointing"], 1)];
  const four = ["--load-in-4bit", "--bnb-4bit-quant-type", "nf4"];
  const packed = [of("kept", [...four, "--weight-cache", "on"], 1), of("turns", [...four, "--weight-cache", "off"], 2)];
  require("the same bits over 1 and 2 workers, kept, recomputed and cached", new Set(all).size === 1 &&
    new Set(packed).size === 1, {});
}

// Gradients of the trained adapter, by layer, against float32's.
{
  const spec = await readModelSpec(model);
  const adapter = await openAdapter(join(folder, "bf16"));
  const { targets, matrices } = resolveLoraTargets(spec, adapter.settings);
  const rows = Array.from({ length: 8 }, (_, row) =>
    Array.from({ length: 96 }, (_, at) => (row * 131 + at * at * 7 + 3) % 500),
  );
  const gradients = async (computeDtype, fp8) => {
    const engine = await loadEngine().openEngine({
      ...{ device: "cuda:0", threads: 2, computeDtype },
      ...{ arch: engineArch(spec, computeDtype), arenaBytes: 256 << 20 },
    });
    const whole = {
      index: 0,
      rank: 0,
      firstLayer: 0,
      lastLayer: spec.layers.length - 1,
      checkpointedBlocks: 0,
      offloadedBlocks: 0,
      cachedBlocks: 0,
    };
    const pairs = new Map(targets.map((target) => [target.name, { ...target, module: target.name, expertsOf: "" }]));
    const { description, weights } = describeSegment(spec, { ...whole, needsInputGrad: false }, pairs);
    await engine.addSegment({ ...description, fp8 });
    const checkpoint = await openCheckpoint(model, spec);
    for (const name of weights) await engine.loadWeight(0, name, checkpoint.locate(name), computeDtype);
    const read = adapterMatrices(adapter, matrices);
    for (const { name } of matrices) await engine.setMatrix(name, "weight", await read(name));
    const ids = rows.flat();
    const next = rows.flatMap((row) => [...row.slice(1), -100]);
    const labels = next.filter((id) => id >= 0).length;
    const batch = {
      ...{ index: 0, step: 1, seed: 0, training: true, labelSmoothing: 0, noiseAlpha: 0, lossScale: 1 },
      ...{
        cuSeqlens: Int32Array.from([0, ...rows.keys()].map((_, i) => i * 96)),
        rowIds: Int32Array.from(rows.keys()),
      },
      ...{
        tokens: Int32Array.from(ids),
        targets: Int32Array.from(next),
        weights: Float32Array.from(next, (id) => (id < 0 ? 0 : 1 / labels)),
      },
    };
    await engine.forward(0, batch, null);
    await engine.backward(0, 0, null);
    const found = new Map();
    for (const { name, layer } of matrices) {
      found.set(layer, [...(found.get(layer) ?? []), ...(await engine.getMatrix(name, "grad"))]);
    }
    await engine.close();
    return found;
  };
  const cosine = (a, b) => {
    let [dot, aa, bb] = [0, 0, 0];
    for (let i = 0; i < a.length; i++) {
      dot += a[i] * b[i];
      aa += a[i] * a[i];
      bb += b[i] * b[i];
    }
    return dot / Math.sqrt(aa * bb);
  };
  const exact = await gradients("float32", false);
  const byLayer = (own) =>
    [...exact.keys()].map((layer) => Number(cosine(own.get(layer), exact.get(layer)).toFixed(5)));
  const figures = {
    bf16: byLayer(await gradients("bfloat16", false)),
    fp8: byLayer(await gradients("bfloat16", true)),
  };
  require("gradients by layer, cosine to float32's above 0.98", Math.min(...figures.fp8) > 0.98, figures);
}

if (shape !== undefined) {
  const weights = join(folder, "shape");
  const made = coordinator(["init-model", "--config", shape, "--torch-dtype", "bfloat16", "--output-dir", weights]);
  if (made.status !== 0) throw new Error(made.stderr);
  const rows = Array.from({ length: 400 }, (_, row) => {
    const ids = Array.from({ length: 384 }, (_, at) => 5 + ((row * 7919 + at * at * 31 + (at % 13) * 101) % 5000));
    return `${JSON.stringify({ input_ids: ids, labels: ids })}\n`;
  });
  writeFileSync(join(folder, "shape.jsonl"), rows.join(""));
  const losses = (flags) =>
    events(
      train([
        ...[
          "--model",
          weights,
          "--dataset",
          join(folder, "shape.jsonl"),
          "--target-modules",
          "all-linear",
          "--lora-r",
          "8",
        ],
        ...[
          "--per-device-train-batch-size",
          "8",
          "--max-steps",
          "50",
          "--logging-steps",
          "1",
          "--learning-rate",
          "1e-4",
        ],
        ...[
          "--compute-dtype",
          "bfloat16",
          "--load-in-4bit",
          "--bnb-4bit-quant-type",
          "nf4",
          "--bnb-4bit-use-double-quant",
        ],
        ...["--output-dir", join(folder, "shape-out"), ...flags],
      ]),
      "log",
    )
      .map(({ loss }) => loss)
      .filter((loss) => loss !== undefined);
  const [half, eight] = [losses([]), losses(["--fp8"])];
  const most = Math.max(...half.map((loss, step) => apart(eight[step], loss)));
  const figures = {
    first: [half[0], eight[0]],
    last: [half.at(-1), eight.at(-1)],
    largest_relative_difference: Number(most.toExponential(2)),
  };
  require("50 steps of a 7B shape: every loss within 0.5 %", half.length === 50 && most < 0.005, figures);
}
process.exitCode = failed === 0 ? 0 : 1;
