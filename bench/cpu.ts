import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../src/common/root.ts";
import { makeWorkload, median, type RunOptions, stepTimes } from "./training-run.ts";

const ROWS = 8;
const TOKENS = 128;
const STEPS = 10;

/**
 * Training on this machine's CPU, whole processes, beside its peers in one run: PyTorch (peer_cpu.py), one core, two
 * cores, pipelines, bf16. Prints one JSON line a row.
 */
export function benchCpu(print: (row: object) => void): void {
  const shared = process.env["PIPELORA_SHARED"] ?? join(PACKAGE_ROOT, "..", "shared");
  const config = join(PACKAGE_ROOT, "bench", "cpu-bench.json");
  const folder = mkdtempSync(join(tmpdir(), "pipelora-bench-"));
  try {
    const { vocab_size: vocab } = JSON.parse(readFileSync(config, "utf8")) as { vocab_size: number };
    const workload = makeWorkload(folder, config, vocab, 4 * ROWS * STEPS, TOKENS);
    const ours = (name: string, change: Partial<RunOptions>, batches = 1) => {
      const run = { output: join(folder, "out"), workers: 1, threads: 1, cores: null, steps: STEPS };
      const flags = [...(change.flags ?? []), "--gradient-accumulation-steps", String(batches)];
      const options = { ...workload, ...run, ...change, flags };
      const stepMs = median(stepTimes(options));
      const row = { row: name, step_ms: round(stepMs), tokens_per_s: round((batches * ROWS * TOKENS * 1000) / stepMs) };
      print(row);
      return row.tokens_per_s;
    };
    const peer = join(shared, "reference", "peer_cpu.py");
    const one = ours("one worker, one core, f32", { cores: "0" });
    for (const threads of [1, 2]) {
      const rate = existsSync(peer) ? torch(peer, config, threads, print) : null;
      const own = threads === 1 ? one : ours("one worker, two cores, f32", { threads: 2 });
      if (rate !== null) print({ row: `f32 against PyTorch, ${threads} core(s)`, ratio: round(own / rate, 3) });
    }
    const oneFastest = ours("one worker, one core, f32, fastest", { cores: "0", deviceMap: "fastest" });
    const pairs = [
      { name: "fastest", change: { deviceMap: "fastest" } },
      { name: "1f1b", change: {} },
      { name: "sequential", change: { flags: ["--schedule", "sequential"] } },
    ];
    for (const { name, change } of pairs) {
      const two = ours(`two workers, a core each, f32, ${name}`, { workers: 2, ...change });
      // Each against one worker with the same freedom to cut the step.
      const alone = name === "fastest" ? oneFastest : one;
      print({ row: `two workers against one on one core, ${name}`, ratio: round(two / alone, 3) });
    }
    const oneDeep = ours("one worker, one core, f32, 32 rows a step", { cores: "0" }, 4);
    const twoDeep = ours(
      "two workers, a core each, f32, 32 rows a step, 1f1b",
      {
        workers: 2,
        flags: ["--micro-batch-tokens", String(TOKENS)],
      },
      4,
    );
    print({ row: "two workers against one on one core, 32 micro-batches", ratio: round(twoDeep / oneDeep, 3) });
    const half = ours("one worker, one core, bf16", {
      cores: "0",
      flags: ["--compute-dtype", "bfloat16", "--torch-dtype", "bfloat16"],
    });
    print({ row: "bf16 against f32", ratio: round(half / one, 3) });
    print(productShare());
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function torch(peer: string, config: string, threads: number, print: (row: object) => void): number | null {
  const cores = threads === 1 ? "0" : "0,1";
  const command = ["-c", cores, "/usr/bin/python3", peer, config, String(threads), String(ROWS), String(TOKENS)];
  // Debian's OpenBLAS chooses its own kernels: settings that hold it back elsewhere stay out.
  const { OPENBLAS_CORETYPE: _core, OPENBLAS_L2_SIZE: _cache, ...env } = process.env;
  const result = spawnSync("taskset", command, { encoding: "utf8", env });
  if (result.status !== 0) {
    print({ row: "PyTorch", skipped: "needs Debian's python3-torch and libopenblas0-pthread" });
    return null;
  }
  const measured = JSON.parse(result.stdout) as { step_ms: number; tokens_per_s: number };
  print({ row: `PyTorch, ${threads} core(s), f32`, step_ms: measured.step_ms, tokens_per_s: measured.tokens_per_s });
  return measured.tokens_per_s;
}

/** The engine alone, with oneDNN's own rate at these shapes in the same process. */
function productShare(): object {
  const program = join(PACKAGE_ROOT, "build", "native", "bench", "step_bench");
  const result = spawnSync("taskset", ["-c", "0", program], { encoding: "utf8" });
  return result.status === 0
    ? { row: "engine alone, one core, f32", output: result.stdout.trim() }
    : { row: "engine alone", skipped: "build it with `npm run test:native`" };
}

function round(value: number, digits = 1): number {
  return Number(value.toFixed(digits));
}
