import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { elementCount } from "../../../src/common/dtype.ts";
import { writeCheckpoint } from "../../../src/formats/checkpoint-writer.ts";
import { storedTensors } from "../../../src/models/experts.ts";
import { modelSpecFromConfig } from "../../../src/models/index.ts";
import { distance } from "../../support/models/distance.ts";
import { lastLogits, wholeModel } from "../../support/models/one-engine.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";
import { fixture } from "../../unit/shared-data.ts";

/**
 * Configurations of each family that transformers 5.17 has, with settings drawn at random: rotary scaling, head widths, ties, windows, biases, activations,
 * experts … Weights follow from names, so each case is its config.json and every eighth logit behind 12 tokens and behind 40, as
 * transformers computed them in float32.
 */
interface Variant {
  readonly config: Record<string, unknown>;
  readonly logits: readonly number[];
  readonly far: readonly number[];
}
const variants = JSON.parse(readFileSync(fixture("models/variants.json"), "utf8")) as Variant[];

/** FNV-1a. */
function hashOf(text: string): number {
  let hash = 2166136261;
  for (const byte of Buffer.from(text)) hash = Math.imul(hash ^ byte, 16777619) >>> 0;
  return hash;
}

/** Element i depends on (name, i) alone. Vectors: 0.7 to 1.1 in norms, else -0.3 to 0.3; matrices: spread by the width of their input. */
function valuesOf(name: string, shape: readonly number[]): Float32Array {
  const start = hashOf(name);
  const width = shape.length === 1 ? 0.6 : 4 / Math.sqrt(shape.at(-1)!);
  const norm = shape.length === 1 && name.endsWith("norm.weight");
  return Float32Array.from({ length: elementCount(shape) }, (_, i) => {
    let h = (Math.imul(i, 2654435761) + start) >>> 0;
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b) >>> 0;
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35) >>> 0;
    const uniform = ((h ^ (h >>> 16)) >>> 0) / 2 ** 32 - 0.5;
    return norm ? 0.9 + 0.4 * uniform : width * uniform;
  });
}

test("settings of every family: transformers' logits", async (t) => {
  const ids = Array.from({ length: 40 }, (_, i) => ((i * 37 + 11) % 90) + 3);
  const dir = temporaryFolder(t);
  assert.ok(variants.length > 150);
  for (const { config, logits, far } of variants) {
    const spec = modelSpecFromConfig(config);
    const tied = new Set(spec.tied.map(([alias]) => alias));
    const tensors = storedTensors(spec, null)
      .filter(({ name, persistent }) => persistent && !tied.has(name))
      .map(({ name, shape }) => ({
        ...{ name, shape, dtype: "float32" as const },
        data: async () => new Uint8Array(valuesOf(name, shape).buffer),
      }));
    await writeCheckpoint(dir, tensors);
    writeFileSync(join(dir, "config.json"), JSON.stringify(config));
    const engine = await wholeModel(dir, null);
    for (const [count, expected] of [
      [12, logits],
      [40, far],
    ] as const) {
      const found = (await lastLogits(engine, ids.slice(0, count))).filter((_, i) => i % 8 === 0);
      assert.ok(distance(found, expected) < 1e-4, `${JSON.stringify(config)}: ${distance(found, expected)}`);
    }
    await engine.close();
  }
});
