import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PipeloraError } from "../src/common/errors.ts";
import { loadEngine } from "../src/engine/index.ts";
import { deviceLinkRate } from "./device-links.ts";
import { makeModel, makeRows, median, round, runEvents } from "./training-run.ts";

const FIELDS = {
  ...{ rms_norm_eps: 1e-6, max_position_embeddings: 8192, tie_word_embeddings: false, torch_dtype: "bfloat16" },
};

/** Published shapes, what is trained of them, and the rows of a micro-batch. */
const MODELS: readonly Model[] = [
  {
    model: "qwen-7b",
    config: {
      ...{ model_type: "qwen", architectures: ["QWenLMHeadModel"], hidden_size: 4096, intermediate_size: 22016 },
      ...{ num_hidden_layers: 32, num_attention_heads: 32, kv_channels: 128, vocab_size: 151936, no_bias: true },
      ...{ seq_length: 8192, layer_norm_epsilon: 1e-6, rotary_emb_base: 10000, torch_dtype: "bfloat16" },
    },
    sizes: [
      { size: "8x384", rows: 8, tokens: 384, steps: 8 },
      { size: "4x2048", rows: 4, tokens: 2048, steps: 5 },
    ],
  },
  {
    model: "qwen2.5-32b",
    config: {
      ...FIELDS,
      ...{ model_type: "qwen2", architectures: ["Qwen2ForCausalLM"], hidden_size: 5120, intermediate_size: 27648 },
      ...{ num_hidden_layers: 64, num_attention_heads: 40, num_key_value_heads: 8, vocab_size: 152064 },
    },
    lora: ["--target-modules", "all-linear", "--lora-r", "16", "--lora-alpha", "32"],
    sizes: [{ size: "1x4096", rows: 1, tokens: 4096, steps: 5 }],
  },
  {
    model: "llama-3-70b",
    config: {
      ...FIELDS,
      ...{ model_type: "llama", architectures: ["LlamaForCausalLM"], hidden_size: 8192, intermediate_size: 28672 },
      ...{ num_hidden_layers: 80, num_attention_heads: 64, num_key_value_heads: 8, vocab_size: 128256 },
    },
    lora: ["--target-modules", "all-linear", "--lora-r", "16", "--lora-alpha", "32"],
    sizes: [{ size: "1x4096", rows: 1, tokens: 4096, steps: 5 }],
  },
  {
    model: "qwen3-30b-a3b",
    config: {
      ...FIELDS,
      ...{
        model_type: "qwen3_moe",
        architectures: ["Qwen3MoeForCausalLM"],
        hidden_size: 2048,
        intermediate_size: 6144,
      },
      ...{ num_hidden_layers: 48, num_attention_heads: 32, num_key_value_heads: 4, head_dim: 128, vocab_size: 151936 },
      ...{ num_experts: 128, num_experts_per_tok: 8, moe_intermediate_size: 768, norm_topk_prob: true },
    },
    lora: ["--target-modules", "q_proj,k_proj,v_proj,o_proj", "--lora-r", "16", "--lora-alpha", "32"],
    sizes: [{ size: "8x384", rows: 8, tokens: 384, steps: 8 }],
  },
];

const BF16 = ["--torch-dtype", "bfloat16", "--compute-dtype", "bfloat16"];
const NF4 = [...BF16, "--load-in-4bit", "--bnb-4bit-quant-type", "nf4", "--bnb-4bit-use-double-quant"];
const BASES = [
  { base: "nf4", flags: NF4 },
  { base: "bf16", flags: BF16 },
  { base: "nf4-fp8", flags: [...NF4, "--fp8"] },
  { base: "bf16-fp8", flags: [...BF16, "--fp8"] },
];

const LINKS = ["nccl", "shm", "grpc"];
const WARM_UP = 2;
const ADAPTERS = 8;
/** Micro-batches of a step for each device: what a pipeline needs to be full most of the time. */
const DEPTH = 4;
const LINK_MESSAGES = 100;

export interface Model {
  readonly model: string;
  /** Its config.json. */
  readonly config: { readonly vocab_size: number; readonly hidden_size: number };
  /** Flags of the adapter. */
  readonly lora?: readonly string[];
  readonly sizes: readonly {
    readonly size: string;
    readonly rows: number;
    readonly tokens: number;
    readonly steps: number;
  }[];
}

/** What a benchmark over several devices is made of; the GPUs of this host, or smaller things to try it with. */
export interface Machine {
  readonly devices: readonly string[];
  /** The first is what runs where none is named. */
  readonly models: readonly Model[];
  readonly bases: readonly { readonly base: string; readonly flags: readonly string[] }[];
  /** Where models of random weights stay; none: they are deleted after the runs. */
  readonly weights?: string;
  /** For the coordinator, beside those of each run. */
  readonly flags: readonly string[];
  /** CPU workers; null: one for each GPU. */
  readonly workers: number | null;
}

/**
 * Training at published shapes with random weights over all GPUs of this host, and on one of them: bases, sizes of micro-batches,
 * ways to place, links. One JSON line a run, predicted beside measured. `only`: names of models (none: qwen-7b), bases, sizes,
 * placements and links to keep to ("nf4", "8x384", "1f1b", "nccl"); `--weights DIR`: models of
 * random weights are kept there, and taken from there. Error: PL_DEVICE_UNAVAILABLE with fewer than two GPUs.
 */
export async function benchMultiGpu(print: (row: object) => void, args: readonly string[]): Promise<void> {
  const at = args.indexOf("--weights");
  const weights = at < 0 ? undefined : args[at + 1];
  if (at >= 0 && weights === undefined) {
    throw new PipeloraError("PL_CONFIG_INVALID", "--weights: expected a folder for the models of random weights");
  }
  const only = at < 0 ? args : args.toSpliced(at, 2);
  const { cuda } = loadEngine().capabilities();
  const gpus = cuda?.devices ?? [];
  if (gpus.length < 2) {
    const why = cuda === null ? "this build has no CUDA part" : (cuda.reason ?? "it is the only one");
    throw new PipeloraError("PL_DEVICE_UNAVAILABLE", `expected two or more GPUs, found ${gpus.length}: ${why}`, {
      hint: "Run it on a host with several GPUs, 80 GB of memory each or more, NCCL, and disk for the weights in bfloat16.",
    });
  }
  const devices = gpus.map(({ index }) => `cuda:${index}`);
  const machine = {
    devices,
    models: MODELS,
    bases: BASES,
    flags: [],
    workers: null,
    ...(weights === undefined ? {} : { weights }),
  };
  await runMultiDevice(print, only, machine);
}

interface Placement {
  readonly placement: string;
  readonly flags: readonly string[];
  readonly deviceMap: string;
  readonly replicas: number;
  /** So many adapters over one base share a step's micro-batches. */
  readonly adapters?: number;
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
    { ...one, placement: `${ADAPTERS}-adapters`, deviceMap: "auto", flags: [], adapters: ADAPTERS },
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
  const { devices, models, bases } = machine;
  const kept = <T>(all: readonly T[], name: (one: T) => string) => {
    const named = all.filter((one) => only.includes(name(one)));
    return named.length > 0 ? named : all;
  };
  const named = models.filter(({ model }) => only.includes(model));
  const subjects = named.length > 0 ? named : models.slice(0, 1);
  const known = [
    ...models.flatMap(({ model, sizes }) => [model, ...sizes.map(({ size }) => size)]),
    ...[...bases.map(({ base }) => base), ...LINKS, ...placements(devices.length).map(({ placement }) => placement)],
  ];
  const unknown = only.filter((name) => !known.includes(name));
  if (unknown.length > 0)
    throw new PipeloraError("PL_CONFIG_INVALID", `no part of this benchmark: ${unknown.join(", ")}`);
  const links = kept(LINKS, (name) => name);
  for (const subject of subjects) {
    const folder = mkdtempSync(join(tmpdir(), "pipelora-bench-"));
    try {
      const configPath = join(folder, "config.json");
      writeFileSync(configPath, JSON.stringify(subject.config));
      const made = join(machine.weights ?? folder, subject.model);
      if (!existsSync(made)) makeModel(configPath, made);
      for (const size of kept(subject.sizes, (one) => one.size)) {
        const shape = [size.rows * size.tokens, subject.config.hidden_size] as const;
        for (const link of links) {
          const rate = await deviceLinkRate([devices[0]!, devices[1]!], link, shape, LINK_MESSAGES);
          const MiB = round((2 * shape[0] * shape[1]) / 2 ** 20);
          print({ row: "link", link, size: size.size, MiB, GB_per_s: round(rate, 2) });
        }
        const rows = size.rows * DEPTH * devices.length;
        const dataset = makeRows(join(folder, `${size.size}.jsonl`), subject.config.vocab_size, rows, size.tokens);
        for (const base of kept(bases, (one) => one.base)) {
          for (const way of kept(placements(devices.length), ({ placement }) => placement)) {
            // One device exchanges nothing: once is enough.
            for (const link of way.placement === "one" ? ["auto"] : links) {
              const row = { model: subject.model, devices: devices.length, base: base.base, size: size.size };
              const flags = [...base.flags, ...machine.flags, "--link", link];
              const result = measured(machine, { ...subject, folder, path: made, dataset }, size, way, flags);
              print({ ...row, placement: way.placement, link, ...result });
            }
          }
        }
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }
}

interface Plan {
  readonly links: readonly { readonly kind: string }[];
  readonly predicted: { readonly step_time_ms: number; readonly bubble: number; readonly tokens_per_s: number };
  readonly devices: readonly { readonly segments: readonly { readonly offloaded_blocks: number }[] }[];
}

interface Step {
  readonly step: number;
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

/** A round of several adapters is told once for each: its time, and their tokens together. */
function rounds(told: readonly Step[]): Step[] {
  const all = new Map<number, Step>();
  for (const own of told) {
    const { stepMs, tokens } = all.get(own.step) ?? { stepMs: 0, tokens: 0 };
    all.set(own.step, { ...own, stepMs: Math.max(stepMs, own.stepMs), tokens: tokens + own.tokens });
  }
  return [...all.values()];
}

/** A run's figures; or why there was none. */
function measured(
  machine: Machine,
  { folder, path, dataset, lora }: Pick<Model, "lora"> & { folder: string; path: string; dataset: string },
  { rows, tokens, steps: count }: Model["sizes"][number],
  way: Placement,
  given: readonly string[],
): object {
  const batches = DEPTH * machine.devices.length;
  const adapters = join(folder, "adapters.yaml");
  const names = Array.from({ length: way.adapters ?? 1 }, (_, index) => `a${index}`);
  writeFileSync(adapters, names.map((name, index) => `${name}: {learning_rate: ${1e-4 * (index + 1)}}\n`).join(""));
  const flags = [
    ...[...given, ...way.flags, "--calibrate", "always", "--learning-rate", "1e-4"],
    ...["--per-device-train-batch-size", String(rows), "--micro-batch-tokens", String(rows * tokens)],
    ...["--max-length", String(tokens), "--num-train-epochs", "1000"],
    // Each replica, and each adapter, has a share of the step's rows.
    ...["--gradient-accumulation-steps", String(Math.max(1, batches / (way.replicas * names.length)))],
    ...(way.adapters === undefined ? [] : ["--adapters", adapters]),
  ];
  const output = join(folder, "out");
  const fixed = {
    model: path,
    dataset,
    output,
    ...(lora === undefined ? {} : { lora }),
    workers: machine.workers,
    threads: 2,
    cores: null,
  };
  let events: ReturnType<typeof runEvents>;
  try {
    events = runEvents({ ...fixed, steps: count, deviceMap: way.deviceMap, flags });
  } catch (error) {
    return { failed: (error as Error).message.trim().split("\n").slice(-3).join(" ") };
  }
  const steps = rounds(events.filter(({ event }) => event === "step") as unknown as Step[]).slice(WARM_UP);
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
