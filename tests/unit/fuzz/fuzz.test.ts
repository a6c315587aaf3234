import assert from "node:assert/strict";
import { test } from "node:test";
import { fuzz } from "../../fuzz/fuzz.ts";
import { TARGETS } from "../../fuzz/targets/index.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

/** A short run of `npm run fuzz`; its seed is fixed, so that a failure here is a change's doing. */
const SEED = "ci";
const INPUTS = 20;

for (const { name } of TARGETS) {
  test(`fuzz ${name}: every input is right, or ends in an error of the catalogue`, async (t) => {
    const folder = temporaryFolder(t);
    const result = await fuzz({ target: name, seed: SEED, inputs: INPUTS, folder });
    const told = result.failures.map(({ kind, number, detail }) => `${kind} of input ${number}: ${detail}`);
    assert.deepEqual(told, []);
    const refused = [...result.codes.values()].reduce((sum, count) => sum + count, 0);
    assert.equal(result.taken + refused, INPUTS);
    assert.ok(result.peakBytes < 2 ** 30, `${result.peakBytes} bytes were resident`);
  });
}
