import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { openSafetensors, readFloat32 } from "../../src/formats/safetensors.ts";
import { readJson } from "../support/cli.ts";
import { lastLogits, meanLossBatch, wholeModel } from "../support/one-engine.ts";
import { fixture, shared } from "../unit/shared-data.ts";

function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assert.equal(a.length, b.length);
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < b.length; i++) {
    difference += (a[i]! - b[i]!) ** 2;
    norm += b[i]! ** 2;
  }
  return Math.sqrt(difference / norm);
}

const NF4 = { method: "4bit", dtype: "float32", quantType: "nf4", doubleQuant: true, blockSize: 64 } as const;

for (const { name, hold, loss: closeLoss, rest } of [
  { name: "qwen1", hold: null, loss: 1e-5, rest: 1e-4 },
  { name: "qwen2-gqa-tied", hold: null, loss: 1e-5, rest: 1e-4 },
  ...["gemma2", "gemma3", "phi3", "glm4", "granite"].map((name) => ({ name, hold: null, loss: 1e-5, rest: 1e-4 })),
  { name: "qwen1-nf4", hold: NF4, loss: 1e-4, rest: 1e-3 },
]) {
  test(`${name}: first loss, logits and every gradient of the first batch`, async () => {
    const folder = fixture(`goldens/${name}`);
    const { first } = readJson<{ first: { loss: number; logits_row0_last: number[] } }>(folder, "expected.json");
    const rows = readFileSync(join(folder, "data.jsonl"), "utf8")
      .trim()
      .split("\n")
      .slice(0, 4)
      .map((line) => JSON.parse(line) as { input_ids: number[]; labels: number[] });
    const engine = await wholeModel(join(folder, "model"), join(folder, "adapter_init"), hold);
    const { lossSum } = await engine.forward(0, meanLossBatch(rows, true), null);
    assert.ok(Math.abs(lossSum - first.loss) / first.loss < closeLoss, `loss ${lossSum}, expected ${first.loss}`);
    await engine.backward(0, 0, null, 1);
    const gradients = await openSafetensors(join(folder, "first_grads.safetensors"));
    const squares = await engine.gradSquares();
    for (const [index, module] of (await engine.loraNames()).entries()) {
      for (const [offset, matrix] of (["A", "B"] as const).entries()) {
        const name = [...gradients.tensors.keys()].find((key) => key.includes(`${module}.lora_${matrix}.`))!;
        const expected = await readFloat32(gradients.tensors.get(name)!);
        const got = await engine.getLora(module, matrix, "grad");
        // B is zero at first, so A's gradient is too.
        if (expected.every((value) => value === 0))
          assert.ok(
            got.every((value) => value === 0),
            name,
          );
        else assert.ok(distance(got, expected) < rest, `${name}: ${distance(got, expected)}`);
        const square = got.reduce((sum, value) => sum + value * value, 0);
        assert.ok(Math.abs(squares[2 * index + offset]! - square) <= 1e-6 * square, name);
      }
    }
    assert.ok(distance(await lastLogits(engine, rows[0]!.input_ids), first.logits_row0_last) < rest);
    await engine.close();
  });
}

test("Qwen (v1) past its training length: dynamic NTK and log-n attention", async () => {
  const folder = fixture("goldens/qwen1-long");
  const engine = await wholeModel(join(folder, "model"), null);
  const cases = readJson<{ input_ids: number[]; last_logits: number[] }[]>(folder, "expected.json");
  assert.ok(cases.length > 0);
  for (const { input_ids, last_logits } of cases) {
    const far = distance(await lastLogits(engine, input_ids), last_logits);
    assert.ok(far < 1e-4, `${input_ids.length} tokens: ${far}`);
  }
  await engine.close();
});

const stories = shared("data/stories260k");

test("a trained Llama: logits of stories260k", { skip: stories === null }, async () => {
  const engine = await wholeModel(stories!, null);
  const { input_ids, last_logits } = readJson<{ input_ids: number[]; last_logits: number[] }>(
    shared("goldens/inference/stories260k.json")!,
  );
  assert.ok(distance(await lastLogits(engine, input_ids), last_logits) < 1e-4);
  await engine.close();
});
