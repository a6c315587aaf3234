import { type CpuWorkload, ROWS, TOKENS, withCpuWorkload } from "./cpu-workload.ts";
import { median, type RunOptions, round, stepTimes } from "./training-run.ts";

const PASSES = 5;

/** What is compared: two workers with a core each, and one worker on one core with the same freedom to cut the step. */
interface Pair {
  readonly name: string;
  readonly one: Partial<RunOptions>;
  readonly two: Partial<RunOptions>;
  readonly batches: number;
}

const PAIRS: readonly Pair[] = [
  { name: "fastest", one: { deviceMap: "fastest" }, two: { deviceMap: "fastest" }, batches: 1 },
  { name: "1f1b", one: {}, two: {}, batches: 1 },
  { name: "sequential", one: {}, two: { flags: ["--schedule", "sequential"] }, batches: 1 },
  // 32 micro-batches.
  { name: "deep", one: {}, two: { flags: ["--micro-batch-tokens", String(TOKENS)] }, batches: 4 },
];

/** Two CPU workers against one in f32, in turn: a machine that slows down for a while slows both. One JSON line a pair. `only`: names of pairs. */
export function benchWorkers(print: (row: object) => void, only: readonly string[]): void {
  const pairs = PAIRS.filter(({ name }) => only.length === 0 || only.includes(name));
  withCpuWorkload((workload) => {
    for (const pair of pairs) print(compare(workload, pair));
  });
}

function compare(workload: CpuWorkload, { name, one, two, batches }: Pair): object {
  const passes = Array.from({ length: PASSES }, () => ({
    alone: stepTimes(workload.run({ ...one, cores: "0" }, batches)),
    together: stepTimes(workload.run({ ...two, workers: 2 }, batches)),
  }));
  const rate = (stepMs: number) => round((batches * ROWS * TOKENS * 1000) / stepMs);
  const times = passes.map(({ alone, together }) => median(alone) / median(together));
  // What the machine does while nobody else slows it down.
  const least = (key: "alone" | "together") => Math.min(...passes.flatMap((pass) => pass[key]));
  return {
    row: `two workers against one, ${name}`,
    one_tokens_per_s: rate(median(passes.flatMap(({ alone }) => alone))),
    two_tokens_per_s: rate(median(passes.flatMap(({ together }) => together))),
    times_one: round(median(times), 2),
    passes: times.map((value) => round(value, 2)),
    fastest_steps: { one_tokens_per_s: rate(least("alone")), two_tokens_per_s: rate(least("together")) },
    times_one_of_fastest_steps: round(least("alone") / least("together"), 2),
  };
}
