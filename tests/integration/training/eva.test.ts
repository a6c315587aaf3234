import assert from "node:assert/strict";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { openAdapter } from "../../../src/formats/adapter.ts";
import { openSafetensors, readFloat32 } from "../../../src/formats/safetensors.ts";
import { coordinator, readJson, temporaryFolder } from "../../support/processes/cli.ts";
import { fixture } from "../../unit/shared-data.ts";

const MODEL = join(fixture("goldens/qwen2-gqa-tied"), "model");
const DATA = join(fixture("goldens/qwen2-gqa-tied"), "data.jsonl");

interface Expected {
  readonly lora: Record<string, unknown>;
  readonly eva: Record<string, unknown>;
  readonly batch: number;
}

/** A run that begins with EVA, as flags; its rows in their order. */
function flags(
  output: string,
  lora: Record<string, unknown>,
  eva: Record<string, unknown>,
  ...more: string[]
): string[] {
  const shown = (value: unknown) =>
    Array.isArray(value) ? value.join(",") : typeof value === "object" ? JSON.stringify(value) : String(value);
  const named: Record<string, string> = { r: "lora-r", lora_alpha: "lora-alpha" };
  return [
    ...["train", "--model", MODEL, "--dataset", DATA, "--output-dir", output, "--init-lora-weights", "eva"],
    ...["--eva-config", JSON.stringify(eva), "--train-sampling-strategy", "sequential"],
    ...Object.entries(lora).flatMap(([key, value]) => [`--${named[key] ?? key.replaceAll("_", "-")}`, shown(value)]),
    ...["--compute-dtype", "float32", "--log-level", "warn", "--json"],
    ...more,
  ];
}

async function trained(t: TestContext, args: string[]): Promise<void> {
  const result = await coordinator(args);
  assert.equal(result.code, 0, result.stderr);
  t.diagnostic(result.stderr.trim());
}

const weights = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));

for (const [number, counts] of [
  ["1", [1, 2]],
  ["2", [3]],
] as const) {
  test(`peft's EVA ${number}: ranks, alphas and components over ${counts.join(" and ")} workers`, async (t) => {
    const golden = fixture(`goldens/eva/${number}`);
    const { lora, eva, batch } = readJson<Expected>(golden, "expected.json");
    const root = temporaryFolder(t);
    for (const workers of counts) {
      const size = ["--per-device-train-batch-size", String(batch), "--max-steps", "1", "--workers", String(workers)];
      await trained(t, flags(join(root, String(workers)), lora, eva, ...size));
    }
    const [first] = counts;
    const made = join(root, String(first), "eva");
    for (const workers of counts) assert.deepEqual(weights(join(root, String(workers), "eva")), weights(made));
    for (const workers of counts)
      assert.deepEqual(weights(join(root, String(workers))), weights(join(root, String(first))));
    const [own, theirs] = [made, golden].map((dir) => readJson<Record<string, unknown>>(dir, "adapter_config.json"));
    for (const key of ["rank_pattern", "alpha_pattern", "r", "lora_alpha", "init_lora_weights", "eva_config"]) {
      assert.deepEqual(own![key], theirs![key], key);
    }
    const [a, b] = [
      await openSafetensors(join(made, "adapter_model.safetensors")),
      await openSafetensors(join(golden, "adapter_model.safetensors")),
    ];
    assert.deepEqual([...a.tensors.keys()].sort(), [...b.tensors.keys()].sort());
    for (const [name, location] of b.tensors) {
      const [x, y] = [await readFloat32(a.tensors.get(name)!), await readFloat32(location)];
      const [rows, columns] = location.shape as [number, number];
      if (name.includes("lora_B")) {
        assert.ok(
          x.every((value) => value === 0),
          name,
        );
        continue;
      }
      // Signs are free.
      for (let row = 0; row < rows; row++) {
        const [p, q] = [x, y].map((values) => values.subarray(row * columns, (row + 1) * columns));
        const dot = p!.reduce((sum, value, at) => sum + value * q![at]!, 0);
        const far = Math.sqrt(p!.reduce((sum, value, at) => sum + (value - Math.sign(dot) * q![at]!) ** 2, 0));
        const size = Math.sqrt(q!.reduce((sum, value) => sum + value * value, 0));
        assert.ok(far < 1e-2 * size, `${name}, component ${row}: ${far / size}`);
      }
    }
    // The run went on from it, and its own file says so.
    const last = await openAdapter(join(root, String(first)));
    assert.deepEqual(last.settings.rankPattern, (await openAdapter(made)).settings.rankPattern);
    assert.equal(last.settings.initLoraWeights, "eva");
  });
}

test("a resumed run takes the ranks that it began with, without a pass of its own, and ends with the same bits", async (t) => {
  const root = temporaryFolder(t);
  const lora = { r: 3, target_modules: ["q_proj", "down_proj"] };
  const steps = ["--max-steps", "4", "--save-steps", "2", "--workers", "1", "--learning-rate", "0.01"];
  const whole = flags(join(root, "whole"), lora, { rho: 1.5 }, ...steps);
  await trained(t, whole);
  const made = weights(join(root, "whole"));
  rmSync(join(root, "whole", "checkpoint-4"), { recursive: true });
  await trained(t, [...whole, "--resume-from-checkpoint", join(root, "whole", "checkpoint-2")]);
  assert.deepEqual(weights(join(root, "whole")), made);
  rmSync(join(root, "whole", "eva"), { recursive: true });
  const gone = await coordinator([...whole, "--resume-from-checkpoint"]);
  assert.match(gone.stderr, /PL_RESUME_INVALID.*eva/s);
  // An earlier run's folder is not written over unasked.
  const again = await coordinator(whole);
  assert.match(again.stderr, /PL_OUTPUT_UNWRITABLE/);
});

test("rows too few for the components are found in the first epoch, what begins otherwise before a worker", async (t) => {
  const root = temporaryFolder(t);
  const short = join(root, "short.jsonl");
  const row = JSON.stringify({ input_ids: [1, 2, 3], labels: [-100, -100, 3] });
  writeFileSync(short, Array.from({ length: 4 }, () => row).join("\n"));
  const few = await coordinator(
    flags(join(root, "few"), { r: 8 }, {}, "--dataset", short, "--per-device-train-batch-size", "1"),
  );
  assert.match(few.stderr, /PL_CONFIG_INVALID.*no batch has as many tokens that count/s);
  const biased = await coordinator(flags(join(root, "biased"), { bias: "all" }, {}));
  assert.match(biased.stderr, /PL_CONFIG_INVALID.*eva does not go with bias/s);
});
