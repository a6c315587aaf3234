import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { PACKAGE_ROOT } from "../src/common/root.ts";
import { makeWorkload } from "./training-run.ts";

const RANKS = 8;
const MICRO_BATCHES = 32;
const ROW_TOKENS = 16;
const WARM_UP = 50;
const STEPS = 250;
/** Units of utime and stime in /proc/PID/stat. */
const TICK_MS = 10;

/** The coordinator's own processor time a step, all of it, with real workers on a model so small that their time is nothing. */
export async function benchCoordinator(print: (row: object) => void): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "pipelora-bench-"));
  try {
    const base = JSON.parse(readFileSync(join(PACKAGE_ROOT, "bench", "cpu-bench.json"), "utf8")) as object;
    const sizes = {
      hidden_size: 32,
      intermediate_size: 64,
      num_attention_heads: 2,
      num_key_value_heads: 2,
      head_dim: 16,
    };
    const config = join(folder, "config.json");
    writeFileSync(config, JSON.stringify({ ...base, ...sizes, vocab_size: 256 }));
    const workload = makeWorkload(folder, config, 256, MICRO_BATCHES * 4, ROW_TOKENS);
    const child = spawn(process.execPath, [
      ...[
        join(PACKAGE_ROOT, "dist", "cli", "coordinator.js"),
        "--model",
        workload.model,
        "--dataset",
        workload.dataset,
      ],
      ...["--output-dir", join(folder, "out"), "--save-strategy", "no", "--logging-steps", "1000000", "--json"],
      ...["--max-steps", String(WARM_UP + STEPS), "--per-device-train-batch-size", String(MICRO_BATCHES)],
      ...["--micro-batch-tokens", String(ROW_TOKENS), "--workers", String(RANKS), "--threads", "1"],
      ...["--target-modules", "all-linear", "--log-level", "error"],
    ]);
    let step = 0;
    let before = { user: 0, system: 0 };
    let spent = { user: 0, system: 0 };
    for await (const line of createInterface({ input: child.stdout })) {
      if (!line.startsWith('{"event":"step"')) continue;
      step++;
      if (step === WARM_UP) before = processorMs(child.pid!);
      if (step === WARM_UP + STEPS) {
        const { user, system } = processorMs(child.pid!);
        spent = { user: user - before.user, system: system - before.system };
      }
    }
    if (spent.user === 0) throw new Error("the run failed");
    print({
      row: `coordinator, ${RANKS} ranks, ${MICRO_BATCHES} micro-batches`,
      processor_ms_a_step: (spent.user + spent.system) / STEPS,
      in_the_kernel_ms: spent.system / STEPS,
    });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function processorMs(pid: number): { user: number; system: number } {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]!.split(" ");
  return { user: Number(fields[11]) * TICK_MS, system: Number(fields[12]) * TICK_MS };
}
