import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export interface MadeRun {
  readonly steps: number;
  readonly ranks: number;
  readonly layers?: number;
  readonly microBatches?: number;
  /** null: it has not ended. */
  readonly error?: { readonly code: string; readonly message: string } | null;
  readonly settings?: Readonly<Record<string, unknown>>;
  /** Of the loss at its begin. */
  readonly loss?: number;
  /** Seconds since 1970 of its last step. */
  readonly endedAt?: number;
  readonly note?: string;
}

/** A folder as a run of this size leaves it, in the time that it takes to write it. */
export function writeRun(dir: string, run: MadeRun): void {
  const { steps, ranks, layers = 80, microBatches = 8, loss = 4, endedAt = Date.now() / 1000 } = run;
  mkdirSync(dir, { recursive: true });
  const at = (step: number) => endedAt - (steps - step) * 0.5;
  const lines = Array.from({ length: steps }, (_, index) => {
    const step = index + 1;
    // One step that goes wrong must be seen among all that don't.
    const spike = step === Math.floor(steps / 2) ? 3 * loss : 0;
    const own = loss / (1 + step / (steps / 6)) + 0.1 * Math.sin(step * 12.9898) + spike;
    return JSON.stringify({
      ...{ event: "step", step, epoch: (3 * step) / steps, loss: own, tokens: 4096 + (step % 7) * 16 },
      ...{ grad_norm: 0.5 + 0.3 * Math.cos(step * 7.77), learning_rate: 2e-4 * (1 - step / (steps + 1)) },
      ...{ max_steps: run.error === null ? 2 * steps : steps, step_ms: 480 + (step % 13) * 3, time: at(step) },
    });
  });
  const every = Math.max(1, Math.floor(steps / 40));
  const more = Array.from({ length: Math.floor(steps / every) }, (_, index) => {
    const step = (index + 1) * every;
    const time = at(step);
    const save = { event: "save", step, path: join(dir, `checkpoint-${step}`), time };
    return [
      JSON.stringify({ event: "log", step, eval_loss: loss / (1 + step / (steps / 5)) + 0.2, eval_runtime: 3.2, time }),
      ...(index % 8 === 7 ? [JSON.stringify(save)] : []),
    ].join("\n");
  });
  const end = run.error === undefined ? [JSON.stringify({ event: "end", train_loss: loss / 2, time: endedAt })] : [];
  writeFileSync(join(dir, "metrics.jsonl"), `${[...lines, ...more, ...end].join("\n")}\n`);
  writeFileSync(
    join(dir, "run.jsonl"),
    [
      { event: "began", settings: { model: "./model", lora_r: 8, ...run.settings }, changed: ["model"], time: at(0) },
      { event: "plan", plan: planOf(ranks, layers, microBatches), time: at(0) },
      { event: "preflight", preflight: preflightOf(ranks), time: at(0) },
      ...Array.from({ length: 1200 }, (_, line) => ({
        ...{
          event: "line",
          level: line % 100 === 7 ? "warn" : "info",
          text: `line ${line} of the log`,
          time: at(line),
        },
      })),
      { event: "line", level: "info", text: run.note ?? "the last line", time: endedAt },
      ...(run.error === null ? [] : [{ event: "ended", error: run.error ?? null, time: endedAt }]),
    ]
      .map((event) => `${JSON.stringify(event)}\n`)
      .join(""),
  );
  const last = { event: "last_step", time: endedAt, ...lastStepOf(ranks, microBatches, steps, endedAt) };
  writeFileSync(join(dir, "last-step.json"), JSON.stringify(last));
}

const GIB = 2 ** 30;
const nodeOf = (rank: number) => `node-${Math.floor(rank / 8)}`;

function planOf(ranks: number, layers: number, microBatches: number): object {
  const names = [
    "model.embed_tokens",
    ...Array.from({ length: layers - 2 }, (_, at) => `model.layers.${at}`),
    "lm_head",
  ];
  const first = (rank: number) => Math.floor((rank * layers) / ranks);
  return {
    layers: names,
    ranks: Array.from({ length: ranks }, (_, rank) => ({
      ...{ rank, node: nodeOf(rank), device: `cuda:${rank % 8}`, name: "NVIDIA H200", memory_bytes: 139 * GIB },
    })),
    devices: Array.from({ length: ranks }, (_, rank) => ({
      ...{ device: rank, rank },
      segments: [{ index: rank, first_layer: first(rank), last_layer: Math.max(first(rank), first(rank + 1) - 1) }],
      memory: {
        ...{
          weights: (12 + (rank % 3)) * GIB,
          weightCache: 2 * GIB,
          lora: GIB,
          activations: 20 * GIB,
          workspace: 3 * GIB,
        },
        ...{ expansion: 0, cache: GIB, context: 0.6 * GIB, total: 40 * GIB, budget: 48 * GIB },
      },
    })),
    predicted: { step_time_ms: 470, bubble: 0.18, tokens_per_s: 8700 },
    ...{ replicas: 1, micro_batches: microBatches, micro_batch_tokens: 2048, strategy: "fastest" },
    links: Array.from({ length: ranks - 1 }, (_, rank) => ({
      ranks: [rank, rank + 1],
      kind: nodeOf(rank) === nodeOf(rank + 1) ? "nccl" : "grpc",
    })),
  };
}

function preflightOf(ranks: number): object {
  const nodes = Array.from({ length: Math.ceil(ranks / 8) }, (_, node) => ({
    ...{ node: `node-${node}`, devices: "", version: "0.1.0", skewMs: node * 3 },
    ...{ freeMemoryBytes: 512 * GIB, freeDiskBytes: 900 * GIB },
  }));
  const links = Array.from({ length: ranks - 1 }, (_, rank) => ({
    ...{ from: `${rank} ${nodeOf(rank)}/cuda`, to: `${rank + 1} ${nodeOf(rank + 1)}/cuda`, kind: "nccl" },
    ...{ latencyMs: 0.05, bytesPerSecond: 40 * GIB, problem: null },
  }));
  return { nodes, links };
}

/** 1F1B over so many ranks: a forward takes 1, a backward 2, and the first and last to come wait. */
function lastStepOf(ranks: number, batches: number, step: number, endedAt: number): object {
  const unit = 480 / (3 * batches + 3 * (ranks - 1) + 2);
  const spansOf = (rank: number) => {
    const spans: (string | number)[][] = [["update", 0, 0.6 * unit, -1, -1, -1, -1]];
    for (let batch = 0; batch < batches; batch++) {
      const forward = (rank + 3 * batch + 1) * unit;
      const backward = (3 * batch + 2 * ranks - rank) * unit;
      spans.push(
        ["forward", forward, unit, rank, batch, -1, -1],
        ["backward", backward, 1.9 * unit, rank, batch, -1, -1],
      );
      if (rank > 0) spans.push(["wait", forward - 0.5 * unit, 0.5 * unit, rank, batch, -1, -1]);
      if (rank > 0) spans.push(["send", backward + 1.9 * unit, 0.4 * unit, rank, batch, rank - 1, 8 << 20]);
      if (rank + 1 < ranks) spans.push(["send", forward + unit, 0.4 * unit, rank, batch, rank + 1, 8 << 20]);
      if (rank > 0) spans.push(["receive", forward - 0.4 * unit, 0.3 * unit, rank, batch, rank - 1, -1]);
    }
    return [...spans, ["norm", 478, 1.2, -1, -1, -1, -1]];
  };
  return {
    ...{ step, began_ms: endedAt * 1000 - 480, ms: 480 },
    ranks: Array.from({ length: ranks }, (_, rank) => ({
      ...{ rank, name: `${nodeOf(rank)}/cuda:${rank % 8} (NVIDIA H200)`, clock_error_ms: 0.04 + rank / 1000 },
      spans: spansOf(rank),
    })),
    measured: {
      step_ms: 481.5,
      ranks: Array.from({ length: ranks }, (_, rank) => ({
        ...{
          rank,
          weight_bytes: (14 + (rank % 3)) * GIB,
          lora_bytes: GIB,
          cache_bytes: GIB,
          arena_peak_bytes: 21 * GIB,
        },
        device: { context_bytes: 0.5 * GIB },
      })),
    },
  };
}
