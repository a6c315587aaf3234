import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../src/common/root.ts";
import { CPU_CONFIG, ROWS, TOKENS, withCpuWorkload } from "./cpu-workload.ts";
import { median, type RunOptions, round, stepTimes } from "./training-run.ts";

/**
 * Training on this machine's CPU, whole processes, beside its peers in one run: PyTorch (peer_cpu.py), one core, two
 * cores, bf16. Prints one JSON line a row.
 */
export function benchCpu(print: (row: object) => void): void {
  const shared = process.env["PIPELORA_SHARED"] ?? join(PACKAGE_ROOT, "..", "shared");
  const peer = join(shared, "reference", "peer_cpu.py");
  withCpuWorkload((workload) => {
    const ours = (name: string, change: Partial<RunOptions>) => {
      const stepMs = median(stepTimes(workload.run(change)));
      const row = { row: name, step_ms: round(stepMs), tokens_per_s: round((ROWS * TOKENS * 1000) / stepMs) };
      print(row);
      return row.tokens_per_s;
    };
    const one = ours("one worker, one core, f32", { cores: "0" });
    for (const threads of [1, 2]) {
      const rate = existsSync(peer) ? torch(peer, threads, print) : null;
      const own = threads === 1 ? one : ours("one worker, two cores, f32", { threads: 2 });
      if (rate !== null) print({ row: `f32 against PyTorch, ${threads} core(s)`, ratio: round(own / rate, 3) });
    }
    ours("one worker, one core, f32, fastest", { cores: "0", deviceMap: "fastest" });
    const half = ours("one worker, one core, bf16", {
      cores: "0",
      flags: ["--compute-dtype", "bfloat16", "--torch-dtype", "bfloat16"],
    });
    print({ row: "bf16 against f32", ratio: round(half / one, 3) });
    print(productShare());
  });
}

function torch(peer: string, threads: number, print: (row: object) => void): number | null {
  const cores = threads === 1 ? "0" : "0,1";
  const command = ["-c", cores, "/usr/bin/python3", peer, CPU_CONFIG, String(threads), String(ROWS), String(TOKENS)];
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
