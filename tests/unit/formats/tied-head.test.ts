import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { openCheckpoint } from "../../../src/formats/checkpoint.ts";
import { float32Bytes, writeSafetensors } from "../../../src/formats/safetensors.ts";
import { assertTied } from "../../../src/formats/tied-head.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

const EMBEDDING = "model.embed_tokens.weight";
const HEAD = "lm_head.weight";
const tied = [[HEAD, EMBEDDING]] as const;

async function checkpoint(dir: string, tensors: Readonly<Record<string, Float32Array>>) {
  await writeSafetensors(
    join(dir, "model.safetensors"),
    Object.entries(tensors).map(([name, values]) => ({
      ...{ name, dtype: "float32" as const, shape: [4, values.length / 4] },
      data: () => float32Bytes(values),
    })),
  );
  return openCheckpoint(dir);
}

test("a head that is stored beside its tied embedding must be the same matrix", async (t) => {
  const rows = 5 << 20; // more than one piece
  const embedding = Float32Array.from({ length: rows }, (_, i) => i % 1000);
  const other = Float32Array.from(embedding);
  other[rows - 1]! += 1;
  await assertTied({ tied }, await checkpoint(temporaryFolder(t), { [EMBEDDING]: embedding, [HEAD]: embedding }));
  await assertTied({ tied }, await checkpoint(temporaryFolder(t), { [EMBEDDING]: embedding }));
  const different = await checkpoint(temporaryFolder(t), { [EMBEDDING]: embedding, [HEAD]: other });
  await assert.rejects(assertTied({ tied }, different), {
    code: "PL_CHECKPOINT_INVALID",
    message: /ties lm_head\.weight to model\.embed_tokens\.weight.*two different matrices/,
  });
  await assertTied({ tied: [] }, different);
});
