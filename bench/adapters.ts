import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeWorkload, median, round, runEvents } from "./training-run.ts";

const ADAPTERS = 8;
const STEPS = 5;
const ROWS = 4;
const TOKENS = 48;
const PASSES = 3;
/** 14 M parameters in eight blocks: a pass is far longer than its messages. */
const CONFIG = {
  model_type: "llama",
  architectures: ["LlamaForCausalLM"],
  ...{
    hidden_size: 384,
    intermediate_size: 1024,
    num_hidden_layers: 8,
    num_attention_heads: 6,
    num_key_value_heads: 6,
  },
  ...{ vocab_size: 1024, max_position_embeddings: 2048, rms_norm_eps: 1e-6, tie_word_embeddings: false },
};

interface Measured {
  readonly wallMs: number;
  /** All steps, the first of each run left out. */
  readonly stepsMs: number;
  /** Of the ranks' time in a step, how much they stood still for peers. */
  readonly waiting: number;
}

/** Eight adapters in one run beside eight runs after each other, in turn: a machine that slows down for a while slows both. */
export function benchAdapters(print: (row: object) => void, args: readonly string[]): void {
  const counts = args.length === 0 ? [2, 4] : args.map(Number);
  const folder = mkdtempSync(join(tmpdir(), "pipelora-bench-"));
  try {
    const config = join(folder, "config.json");
    writeFileSync(config, JSON.stringify(CONFIG));
    const made = makeWorkload(folder, config, CONFIG.vocab_size, ROWS * STEPS, TOKENS);
    const adapters = join(folder, "adapters.yaml");
    const rates = Array.from({ length: ADAPTERS }, (_, index) => 1e-4 * (index + 1));
    writeFileSync(adapters, rates.map((rate, index) => `a${index}: {learning_rate: ${rate}}\n`).join(""));
    for (const workers of counts) {
      const run = (output: string, ...flags: string[]) =>
        measured(() =>
          runEvents({
            ...{ ...made, output: join(folder, output), workers, threads: 1, cores: null, steps: STEPS },
            flags: ["--per-device-train-batch-size", String(ROWS), ...flags],
          }),
        );
      const passes = Array.from({ length: PASSES }, () => ({
        together: run("together", "--adapters", adapters),
        apart: rates.map((rate) => run("alone", "--learning-rate", String(rate))),
      }));
      print(row(workers, passes));
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function measured(run: () => Record<string, unknown>[]): Measured {
  const started = performance.now();
  const events = run();
  const wallMs = performance.now() - started;
  // A round is told once for each adapter in it.
  const rounds = new Map<number, number>();
  for (const { event, step, stepMs } of events) {
    if (event === "step") rounds.set(step as number, Math.max(rounds.get(step as number) ?? 0, stepMs as number));
  }
  const timed = [...rounds].filter(([step]) => step > 1).map(([, ms]) => ms);
  const { ranks, step_ms: stepMs } = events.find(({ event }) => event === "predictions") as unknown as {
    ranks: { wait_ms: number }[];
    step_ms: number;
  };
  const waits = ranks.map(({ wait_ms: wait }) => wait / stepMs);
  return {
    wallMs,
    stepsMs: timed.reduce((sum, ms) => sum + ms, 0),
    waiting: waits.reduce((sum, wait) => sum + wait, 0) / waits.length,
  };
}

function row(workers: number, passes: readonly { together: Measured; apart: readonly Measured[] }[]): object {
  const sum = (all: readonly Measured[], key: "wallMs" | "stepsMs") => all.reduce((total, own) => total + own[key], 0);
  const of = (value: (pass: (typeof passes)[number]) => number) => median(passes.map(value));
  const seconds = (ms: number) => round(ms / 1000, 2);
  return {
    row: `${ADAPTERS} adapters over ${workers} CPU workers of one thread, ${STEPS} steps of ${ROWS} rows of ${TOKENS} tokens`,
    together_s: seconds(of(({ together }) => together.wallMs)),
    apart_s: seconds(of(({ apart }) => sum(apart, "wallMs"))),
    times_as_fast: round(
      of(({ together, apart }) => sum(apart, "wallMs") / together.wallMs),
      2,
    ),
    steps_together_s: seconds(of(({ together }) => together.stepsMs)),
    steps_apart_s: seconds(of(({ apart }) => sum(apart, "stepsMs"))),
    steps_times_as_fast: round(
      of(({ together, apart }) => sum(apart, "stepsMs") / together.stepsMs),
      2,
    ),
    waiting_together: round(
      of(({ together }) => together.waiting),
      3,
    ),
    waiting_apart: round(
      of(({ apart }) => median(apart.map(({ waiting }) => waiting))),
      3,
    ),
  };
}
