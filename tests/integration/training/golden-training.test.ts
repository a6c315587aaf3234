import assert from "node:assert/strict";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { openCheckpoint } from "../../../src/formats/checkpoint.ts";
import { adapterDistance, FAMILY_RUNS, goldenFlags, goldenRun, relative } from "../../support/models/golden.ts";
import { coordinator, events, readJson, temporaryFolder } from "../../support/processes/cli.ts";

const RUNS = [
  "qwen1",
  "qwen1-shuffled",
  "qwen2-gqa-tied",
  "head-dim-96",
  "label-smoothing",
  "lora-plus",
  "dora",
  "modules-to-save",
  "lora-embeddings",
  "rank-16-and-64",
  ...FAMILY_RUNS,
];

const adapter = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));

/** Over how many workers a run goes: all counts come up in every few of them. */
const COUNTS = [
  [1, 2, 4],
  [1, 3],
  [1, 4],
  [1, 2],
] as const;

for (const [index, name] of RUNS.entries()) {
  const counts = COUNTS[index % COUNTS.length]!;
  test(`${name}: the Trainer's losses, norms, rates and adapter over ${counts.join(", ")} workers, the same bits`, async (t) => {
    const golden = goldenRun(name);
    const root = temporaryFolder(t);
    for (const workers of counts) {
      const output = join(root, String(workers));
      const result = await coordinator(
        goldenFlags(golden, output, "--workers", String(workers), "--device-map", "balanced"),
      );
      assert.equal(result.code, 0, result.stderr);
      const logs = events(result.stdout, "log") as Record<string, number>[];
      assert.equal(logs.length, golden.logHistory.length);
      for (const [index, expected] of golden.logHistory.slice(0, -1).entries()) {
        const got = logs[index]!;
        assert.ok(relative(got["loss"]!, expected["loss"]!) < 1e-5, `step ${index + 1}: loss ${got["loss"]}`);
        assert.ok(relative(got["grad_norm"]!, expected["grad_norm"]!) < 1e-4, `step ${index + 1}: ${got["grad_norm"]}`);
        assert.ok(Math.abs(got["learning_rate"]! - expected["learning_rate"]!) <= 1e-12 * expected["learning_rate"]!);
        assert.equal(got["epoch"], expected["epoch"]);
        assert.equal(got["step"], expected["step"]);
      }
      assert.ok((await adapterDistance(output, join(golden.folder, "adapter_final"))) < 1e-3);
      const state = readJson<{ total_flos: number; global_step: number }>(output, "trainer_state.json");
      assert.equal(state.total_flos, golden.totalFlos);
      const plan = events(result.stdout, "plan")[0]!["plan"] as { devices: { segments: unknown[] }[] };
      assert.equal(plan.devices.filter(({ segments }) => segments.length > 0).length, workers);
    }
    for (const workers of counts) assert.deepEqual(adapter(join(root, String(workers))), adapter(join(root, "1")));
  });
}

test("gradient checkpointing, another schedule or a map that returns to device 0 changes no bit", async (t) => {
  const golden = goldenRun("qwen2-gqa-tied");
  const root = temporaryFolder(t);
  const variants: Record<string, string[]> = {
    plain: ["--workers", "1"],
    checkpointing: ["--workers", "2", "--gradient-checkpointing"],
    gpipe: ["--workers", "2", "--schedule", "gpipe"],
    sequential: ["--workers", "2", "--schedule", "sequential"],
    returning: ["--workers", "2", "--device-map", join(golden.folder, "returning.json")],
  };
  for (const [variant, flags] of Object.entries(variants)) {
    const result = await coordinator(goldenFlags(golden, join(root, variant), ...flags));
    assert.equal(result.code, 0, `${variant}: ${result.stderr}`);
    assert.deepEqual(adapter(join(root, variant)), adapter(join(root, "plain")), variant);
  }
});

test("a tied model whose file has the head alone trains to the same bits, and merges", async (t) => {
  const golden = goldenRun("qwen2-gqa-tied");
  const root = temporaryFolder(t);
  const model = join(root, "model");
  cpSync(join(golden.folder, "model"), model, { recursive: true });
  const bytes = readFileSync(join(model, "model.safetensors"));
  const length = Number(bytes.readBigUInt64LE(0));
  const header = bytes.subarray(8, 8 + length).toString();
  const names = header.replace('"model.embed_tokens.weight"', '"lm_head.weight"').padEnd(length);
  writeFileSync(
    join(model, "model.safetensors"),
    Buffer.concat([bytes.subarray(0, 8), Buffer.from(names), bytes.subarray(8 + length)]),
  );
  for (const [name, folder] of [
    ["plain", golden.folder],
    ["renamed", root],
  ] as const) {
    const flags = goldenFlags(
      { ...golden, args: { ...golden.args, max_steps: 2 } },
      join(root, name),
      "--workers",
      "2",
    );
    const result = await coordinator([...flags, "--model", join(folder, "model")]);
    assert.equal(result.code, 0, result.stderr);
    const merged = ["merge", "--model", join(folder, "model"), "--adapter", join(root, name)];
    assert.equal((await coordinator([...merged, "--output-dir", join(root, `${name}-merged`)])).code, 0);
  }
  assert.deepEqual(adapter(join(root, "renamed")), adapter(join(root, "plain")));
  const tensors = async (name: string) => (await openCheckpoint(join(root, `${name}-merged`))).names;
  assert.deepEqual(await tensors("renamed"), await tensors("plain"));
});

test("the trained adapter continues a prompt greedily as transformers does, over several workers", async (t) => {
  for (const [index, name] of RUNS.entries()) {
    const golden = goldenRun(name);
    const prompt = golden.greedy.prompt;
    // Each family's decoding is held in engine-goldens.test.ts; what counts here are the processes around it.
    for (const workers of index < 3 ? ["1", "3"] : index % 3 === 0 ? ["2"] : []) {
      const result = await coordinator([
        ...["generate", "--model", join(golden.folder, "model"), "--adapter", join(golden.folder, "adapter_final")],
        ...[
          "--prompt-ids",
          JSON.stringify(prompt),
          "--max-new-tokens",
          String(golden.greedy.ids.length - prompt.length),
        ],
        ...["--stop-ids", "[]", "--workers", workers, "--json", "--log-level", "warn"],
      ]);
      assert.equal(result.code, 0, result.stderr);
      const { prompt_ids, output_ids } = JSON.parse(result.stdout) as { prompt_ids: number[]; output_ids: number[] };
      assert.deepEqual([...prompt_ids, ...output_ids], golden.greedy.ids, `${name} over ${workers}`);
    }
  }
  t.diagnostic("greedy ids equal");
});
