// What the scripts of this folder share: models of random weights, runs through the command line.
import { spawn, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));
export const program = (name) => join(root, "dist", "cli", `${name}.js`);
export const folder = mkdtempSync(join(tmpdir(), "pipelora-gpu-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));

/** Runs the coordinator to its end; `env` adds to this process's. */
export function coordinator(args, env = {}) {
  return spawnSync(process.execPath, [program("coordinator"), ...args], {
    encoding: "utf8",
    env: { ...process.env, ...env },
    maxBuffer: 1 << 28,
  });
}

/** A Llama of random weights in bfloat16, and `rows` rows of `tokens` ids each that repeat themselves, so that there is something to learn. */
export function makeModel(name, { hidden, ffn, blocks, heads, vocab }, rows, tokens) {
  const model = join(folder, name);
  mkdirSync(model);
  const config = join(folder, `${name}.json`);
  writeFileSync(
    config,
    JSON.stringify({
      ...{ model_type: "llama", architectures: ["LlamaForCausalLM"], hidden_size: hidden, intermediate_size: ffn },
      ...{ num_hidden_layers: blocks, num_attention_heads: heads, num_key_value_heads: heads, vocab_size: vocab },
      ...{ tie_word_embeddings: false, rms_norm_eps: 1e-5, max_position_embeddings: 4096, torch_dtype: "bfloat16" },
    }),
  );
  const made = coordinator(["init-model", "--config", config, "--torch-dtype", "bfloat16", "--output-dir", model]);
  if (made.status !== 0) throw new Error(`init-model failed: ${made.stderr}`);
  const dataset = join(folder, `${name}.jsonl`);
  const id = (row, token) => ((row % 7) * 131 + (token % 16) * 37 + 11) % vocab;
  const line = (row) => JSON.stringify({ input_ids: Array.from({ length: tokens }, (_, token) => id(row, token)) });
  writeFileSync(dataset, Array.from({ length: rows }, (_, row) => `${line(row)}\n`).join(""));
  return [
    "--model",
    model,
    "--dataset",
    dataset,
    "--target-modules",
    "all-linear",
    "--lora-r",
    "8",
    "--lora-alpha",
    "16",
  ];
}

export function events(stdout, name) {
  return stdout
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line))
    .filter(({ event }) => event === name);
}

/** A run on one worker, or on several that share the first GPU: its standard output. */
export function train(args, workers = 1) {
  const flags = [...args, "--overwrite-output-dir", "--save-strategy", "no", "--log-level", "warn", "--json"];
  let node = null;
  if (workers > 1) {
    const port = 20000 + (process.pid % 20000);
    const devices = Array.from({ length: workers }, () => "cuda:0").join();
    const worker = [
      program("worker"),
      "--coordinator",
      `127.0.0.1:${port}`,
      "--devices",
      devices,
      "--log-level",
      "warn",
    ];
    node = spawn(process.execPath, worker, { stdio: "inherit" });
    flags.push("--listen", `127.0.0.1:${port}`, "--device-map", "balanced");
  }
  const run = coordinator(flags);
  node?.kill("SIGTERM");
  if (run.status !== 0) throw new Error(`the run ended with ${run.status}: ${run.stderr.slice(-1500)}`);
  return run.stdout;
}

export function median(values) {
  return [...values].sort((a, b) => a - b)[values.length >> 1];
}
