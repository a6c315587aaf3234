import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { adapterDistance, goldenFlags, goldenRun, relative } from "../../support/models/golden.ts";
import { coordinator, events, temporaryFolder } from "../../support/processes/cli.ts";

const golden = goldenRun("qwen1");
const BATCHES = Number(golden.args["gradient_accumulation_steps"]);

/** A golden run with so many batches of a step a replica. */
async function run(folder: string, name: string, batches: number, ...flags: string[]) {
  const output = join(folder, name);
  const args = ["--gradient-accumulation-steps", String(batches), "--threads", "1", ...flags];
  const { code, stdout, stderr } = await coordinator(goldenFlags(golden, output, ...args));
  assert.equal(code, 0, stderr);
  return { output, losses: events(stdout, "step").map(({ loss }) => loss as number), stdout };
}

test("replicas of a pipeline train as one does with the same batch of a step", async (t) => {
  const folder = temporaryFolder(t);
  const one = await run(folder, "one", BATCHES);
  const two = await run(folder, "two", BATCHES / 2, "--workers", "2", "--replicas", "2");
  const four = await run(folder, "four", BATCHES / 2, "--workers", "4", "--replicas", "2");
  for (const replicated of [two, four]) {
    assert.equal(replicated.losses.length, one.losses.length);
    for (const [step, loss] of replicated.losses.entries()) assert.ok(relative(loss, one.losses[step]!) < 1e-6);
    assert.ok((await adapterDistance(replicated.output, one.output)) < 1e-5);
  }
  // Two stages a replica or one: the same sums in the same order.
  const bytes = (output: string) => readFileSync(join(output, "adapter_model.safetensors"));
  assert.deepEqual(bytes(four.output), bytes(two.output));
});

test("the fastest plan keeps to the step's rows, and with --deterministic-batches to the bits", async (t) => {
  const folder = temporaryFolder(t);
  const one = await run(folder, "one", BATCHES);
  const free = await run(folder, "free", BATCHES, "--workers", "2", "--device-map", "fastest");
  for (const [step, loss] of free.losses.entries()) assert.ok(relative(loss, one.losses[step]!) < 1e-6);
  const fixed = await run(
    folder,
    "fixed",
    BATCHES,
    "--workers",
    "2",
    "--device-map",
    "fastest",
    "--deterministic-batches",
  );
  const bytes = (output: string) => readFileSync(join(output, "adapter_model.safetensors"));
  assert.deepEqual(bytes(fixed.output), bytes(one.output));
});
