import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { createLogger } from "../../../src/common/log.ts";
import { defaultConfig } from "../../../src/config/load.ts";
import { openAdapterSet } from "../../../src/coordinator/generation/adapter-set.ts";
import { pairReader } from "../../../src/coordinator/planning/adapter-pairs.ts";
import { setUpModel } from "../../../src/coordinator/planning/model-setup.ts";
import { openAdapter } from "../../../src/formats/adapter.ts";
import { pairNames } from "../../../src/models/kinds/lora.ts";
import { resolveLoraTargets } from "../../../src/models/lora-targets.ts";
import { writeChainAdapter, writeChainModel } from "../../support/models/chain-model.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

const log = createLogger({ format: "text", level: "silent", fields: {} });

/** scale * B A, [out, in] */
function added(a: Float32Array, b: Float32Array, r: number, scale: number): number[] {
  const [input, out] = [a.length / r, b.length / r];
  return Array.from({ length: out * input }, (_, at) => {
    const [row, column] = [Math.floor(at / input), at % input];
    let sum = 0;
    for (let rank = 0; rank < r; rank++) sum += b[row * r + rank]! * a[rank * input + column]!;
    return scale * sum;
  });
}

test("adapters of other ranks, scales and modules add in common pairs what they add in their own", async (t) => {
  const dir = temporaryFolder(t);
  await writeChainModel(dir, 1);
  const made = [
    { name: "small", letter: "x", r: 1, alpha: 3 },
    { name: "large", letter: "m", r: 3, alpha: 16 },
    { name: "same", letter: "q", r: 2, alpha: 6 },
  ];
  for (const { name, letter, ...size } of made) await writeChainAdapter(join(dir, name), letter, size);
  const config = { ...defaultConfig(), model: dir };
  const setup = await setUpModel(config, log, { weights: true, lora: false });
  const open = (adapter: string | null) => openAdapterSet({ ...config, adapter }, setup, "base", log);
  assert.equal(await open(null), null);
  const given = `${join(dir, "small")},big=${join(dir, "large")},${join(dir, "same")}`;
  const set = (await open(given))!;
  assert.deepEqual(set.names, ["small", "big", "same"]);
  const targets = new Map(set.lora.targets.map((target) => [target.name, target]));
  assert.deepEqual(
    [...targets.values()].map(({ name, r, moduleId }) => [name.split(".").at(-1), r, moduleId]),
    [
      ["q_proj", 3, 0],
      ["lm_head", 3, 1],
    ],
  );
  for (const [index, { name }] of made.entries()) {
    const adapter = await openAdapter(join(dir, name));
    const lora = resolveLoraTargets(setup.spec, adapter.settings);
    const own = lora.targets;
    const values = await set.values(index);
    assert.equal(values.length, 2 * own.length);
    for (const target of own) {
      const { a, b } = await pairReader(adapter, lora)(target);
      const names = pairNames(target.name, target.role);
      const [wideA, wideB] = [names.a, names.b].map((wanted) => values.find(({ name }) => name === wanted)!.values);
      const { r, scale } = targets.get(target.name)!;
      const got = added(wideA!, wideB!, r, scale);
      const expected = added(a, b, target.r, target.scale);
      const far = got.reduce((most, value, at) => Math.max(most, Math.abs(value - expected[at]!)), 0);
      assert.ok(far < 1e-5, `${name} ${target.name}: ${far}`);
    }
  }
  // Where all agree on a scale nothing is rounded anew.
  const agreed = (await open(`${join(dir, "small")},${join(dir, "same")}`))!;
  assert.equal(agreed.lora.targets.find(({ name }) => name === "lm_head")!.scale, 3);
  await assert.rejects(open(`a=${join(dir, "small")},a=${join(dir, "large")}`), /two models would be called a/);
  await assert.rejects(open(`base=${join(dir, "small")}`), /two models would be called base/);
  await assert.rejects(open(`a=${join(dir, "small")},b=${join(dir, "nowhere")}`), { name: "PipeloraError" });
});
