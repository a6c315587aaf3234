import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PipeloraError } from "../src/common/errors.ts";
import { loadEngine } from "../src/engine/index.ts";
import { deviceLinkRate } from "./device-links.ts";
import { makeRows, makeWorkload, median, type RunOptions, round, runEvents } from "./training-run.ts";

/** Qwen-7B. */
const CONFIG = {
  ...{ model_type: "qwen", architectures: ["QWenLMHeadModel"], hidden_size: 4096, intermediate_size: 22016 },
  ...{ num_hidden_layers: 32, num_attention_heads: 32, kv_channels: 128, vocab_size: 151936, no_bias: true },
  ...{ seq_length: 8192, layer_norm_epsilon: 1e-6, rotary_emb_base: 10000, torch_dtype: "bfloat16" },
};

const BF16 = ["--torch-dtype", "bfloat16", "--compute-dtype", "bfloat16"];
const BASES = [
  {
    base: "nf4",
    flags: [...BF16, "--load-in-4bit", "--bnb-4bit-quant-type", "nf4", "--bnb-4bit-use-double-quant"],
  },
  { base: "bf16", flags: BF16 },
];

/** Rows of a micro-batch. */
const SIZES = [
  { size: "8x384", rows: 8, tokens: 384 },
  { size: "4x2048", rows: 4, tokens: 2048 },
];

const LINKS = ["nccl", "shm", "grpc"];
const STEPS = 8;
const WARM_UP = 2;
/** Micro-batches of a step for each device: what a pipeline needs to be full most of the time. */
const DEPTH = 4;
const LINK_MESSAGES = 100;

/** What a benchmark over several devices is made of; the GPUs of this host, or smaller things to try it with. */
export interface Machine {
  readonly devices: readonly string[];
  /** The model's config.json. */
  readonly config: { readonly vocab_size: number; readonly hidden_size: number };
  readonly bases: readonly { readonly base: string; readonly flags: readonly string[] }[];
  readonly sizes: readonly { readonly size: string; readonly rows: number; readonly tokens: number }[];
  /** For the coordinator, beside those of each run. */
  readonly flags: readonly string[];
  /** CPU workers; null: one for each GPU. */
  readonly workers: number | null;
}

/**
 * Training at Qwen-7B's shape with random weights over all GPUs of this host, and on one of them: bases, sizes of micro-batches,
 * ways to place, links. One JSON line a run, predicted beside measured. `only`: names of bases, sizes, placements and links to
 * keep to ("nf4", "8x384", "1f1b", "nccl"). Error: PL_DEVICE_UNAVAILABLE with fewer than two GPUs.
 */
export async function benchMultiGpu(print: (row: object) => void, only: readonly string[]): Promise<void> {
  const { cuda } = loadEngine().capabilities();
  const gpus = cuda?.devices ?? [];
  if (gpus.length < 2) {
    const why = cuda === null ? "this build has no CUDA part" : (cuda.reason ?? "it is the only one");
    throw new PipeloraError("PL_DEVICE_UNAVAILABLE", `expected two or more GPUs, found ${gpus.length}: ${why}`, {
      hint: "Run it on a host with several GPUs, 40 GB of memory each or more, NCCL, and 20 GB of disk for the weights.",
    });
  }
  const devices = gpus.map(({ index }) => `cuda:${index}`);
  const machine = { devices, config: CONFIG, bases: BASES, sizes: SIZES, flags: [], workers: null };
  await runMultiDevice(print, only, machine);
}

interface Placement {
  readonly placement: string;
  readonly flags: readonly string[];
  readonly deviceMap: string;
  readonly replicas: number;
}

/** One device, pipelines over all of them, and every number of replicas that leaves each a whole one. */
function placements(count: number): Placement[] {
  const one = { replicas: 1, flags: ["--schedule", "1f1b"] };
  const alone = ["--schedule", "1f1b", "--max-memory", '{"0": "1000GiB"}'];
  const replicas = Array.from({ length: count }, (_, index) => index + 1).filter((r) => r > 1 && count % r === 0);
  return [
    { ...one, placement: "one", deviceMap: "balanced", flags: alone },
    { ...one, placement: "sequential", deviceMap: "balanced", flags: ["--schedule", "sequential"] },
    { ...one, placement: "1f1b", deviceMap: "balanced" },
    { ...one, placement: "balanced_low_0", deviceMap: "balanced_low_0" },
    { ...one, placement: "shared", deviceMap: "auto" },
    { ...one, placement: "auto", deviceMap: "auto", flags: [] },
    { ...one, placement: "interleaved", deviceMap: "fastest", flags: ["--schedule", "interleaved"] },
    ...replicas.map((r) => ({
      placement: `${r}x${count / r}`,
      deviceMap: "balanced",
      replicas: r,
      flags: ["--schedule", "1f1b", "--replicas", String(r)],
    })),
  ];
}

/** As benchMultiGpu, on what is given. */
export async function runMultiDevice(
  print: (row: object) => void,
  only: readonly string[],
  machine: Machine,
): Promise<void> {
  const { devices, config, bases, sizes } = machine;
  const kept = <T>(all: readonly T[], name: (one: T) => string) => {
    const named = all.filter((one) => only.includes(name(one)));
    return named.length > 0 ? named : all;
  };
  const ways = kept(placements(devices.length), ({ placement }) => placement);
  const known = [...bases.map(({ base }) => base), ...sizes.map(({ size }) => size), ...LINKS];
  const unknown = only.filter(
    (name) => ![...known, ...placements(devices.length).map((way) => way.placement)].includes(name),
  );
  if (unknown.length > 0)
    throw new PipeloraError("PL_CONFIG_INVALID", `no part of this benchmark: ${unknown.join(", ")}`);
  for (const { size, rows, tokens } of kept(sizes, (one) => one.size)) {
    for (const link of kept(LINKS, (name) => name)) {
      const shape = [rows * tokens, config.hidden_size] as const;
      const rate = await deviceLinkRate([devices[0]!, devices[1]!], link, shape, LINK_MESSAGES);
      print({ row: "link", link, size, MiB: round((2 * shape[0] * shape[1]) / 2 ** 20), GB_per_s: round(rate, 2) });
    }
  }
  const folder = mkdtempSync(join(tmpdir(), "pipelora-bench-"));
  try {
    const configPath = join(folder, "config.json");
    writeFileSync(configPath, JSON.stringify(config));
    const { model } = makeWorkload(folder, configPath, config.vocab_size, 1, 8);
    for (const { size, rows, tokens } of kept(sizes, (one) => one.size)) {
      const stepBatches = DEPTH * devices.length;
      const dataset = makeRows(join(folder, `${size}.jsonl`), config.vocab_size, rows * stepBatches, tokens);
      for (const { base, flags: baseFlags } of kept(bases, (one) => one.base)) {
        for (const way of ways) {
          // One device exchanges nothing: once is enough.
          for (const link of way.placement === "one" ? ["auto"] : kept(LINKS, (name) => name)) {
            const flags = [
              ...[...baseFlags, ...way.flags, ...machine.flags, "--link", link, "--gradient-checkpointing"],
              ...["--calibrate", "always", "--learning-rate", "1e-4"],
              ...["--per-device-train-batch-size", String(rows), "--micro-batch-tokens", String(rows * tokens)],
              ...["--max-length", String(tokens)],
              // Each replica has a share of the step's rows.
              ...["--gradient-accumulation-steps", String(stepBatches / way.replicas), "--num-train-epochs", "1000"],
            ];
            const run = { model, dataset, output: join(folder, "out"), workers: machine.workers, threads: 2 };
            const row = { devices: devices.length, base, size, placement: way.placement, link };
            const options = { ...run, cores: null, steps: STEPS, deviceMap: way.deviceMap, flags };
            print({ ...row, ...measured(options) });
          }
        }
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

interface Plan {
  readonly links: readonly { readonly kind: string }[];
  readonly predicted: { readonly step_time_ms: number; readonly bubble: number; readonly tokens_per_s: number };
  readonly devices: readonly { readonly segments: readonly { readonly offloaded_blocks: number }[] }[];
}

interface Step {
  readonly stepMs: number;
  readonly tokens: number;
  readonly loss: number;
}

interface Predictions {
  readonly ranks: readonly {
    readonly compute_ms: number | null;
    readonly weight_bytes: number;
    readonly arena_peak_bytes: number;
    readonly predicted_weight_bytes: number;
    readonly predicted_arena_bytes: number;
  }[];
  readonly step_ms: number;
}

/** A run's figures; or why there was none. */
function measured(options: RunOptions): object {
  let events: ReturnType<typeof runEvents>;
  try {
    events = runEvents(options);
  } catch (error) {
    return { failed: (error as Error).message.trim().split("\n").slice(-3).join(" ") };
  }
  const steps = events.filter(({ event }) => event === "step").slice(WARM_UP) as unknown as Step[];
  const plan = (events.find(({ event }) => event === "plan") as unknown as { plan: Plan }).plan;
  const { ranks, step_ms } = events.find(({ event }) => event === "predictions") as unknown as Predictions;
  const stepMs = median(steps.map((step) => step.stepMs));
  const working = ranks.map(({ compute_ms }) => compute_ms ?? 0).filter((ms) => ms > 0);
  const busy = working.reduce((sum, ms) => sum + ms, 0) / working.length;
  const gib = (bytes: number) => round(bytes / 2 ** 30, 2);
  return {
    kinds: [...new Set(plan.links.map(({ kind }) => kind))],
    step_ms: round(stepMs),
    predicted_step_ms: round(plan.predicted.step_time_ms),
    tokens_per_s: Math.round((1000 * steps[0]!.tokens) / stepMs),
    predicted_tokens_per_s: Math.round(plan.predicted.tokens_per_s),
    idle: round(1 - busy / step_ms, 3),
    predicted_bubble: round(plan.predicted.bubble, 3),
    loss: steps.at(-1)!.loss,
    blocks_on_host: plan.devices.map(({ segments }) => segments.reduce((sum, one) => sum + one.offloaded_blocks, 0)),
    memory_GiB: ranks.map((rank) => gib(rank.weight_bytes + rank.arena_peak_bytes)),
    predicted_memory_GiB: ranks.map((rank) => gib(rank.predicted_weight_bytes + rank.predicted_arena_bytes)),
  };
}
