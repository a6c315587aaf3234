import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Registry } from "prom-client";
import { createLogger } from "../../../../src/common/log.ts";
import { defaultConfig } from "../../../../src/config/load.ts";
import { setUpModel } from "../../../../src/coordinator/planning/model-setup.ts";
import { LiveReplies } from "../../../../src/coordinator/run/replies/live-replies.ts";
import { writeChainModel } from "../../../support/models/chain-model.ts";
import { temporaryFolder } from "../../../support/processes/cli.ts";

const log = createLogger({ format: "text", level: "silent", fields: {} });

test("room for replies is what was asked for, or as much as fits, never less than the prompts take", async (t) => {
  const dir = temporaryFolder(t);
  await writeChainModel(dir, 1);
  const prompts = join(dir, "prompts.txt");
  const config = { ...defaultConfig(), model: dir, output_dir: dir };
  const setup = await setUpModel(config, log, { weights: true, lora: true });
  const open = (changes: object) =>
    LiveReplies.open({ ...config, ...changes }, [{ name: null, config: { ...config, ...changes }, setup }], {
      log,
      http: { registry: new Registry(), live: [] },
    });
  const rows = async (changes: object) => (await open(changes))!.rooms().map((room) => room.rows);

  assert.equal(await open({}), null);
  assert.deepEqual(await rows({ http: "127.0.0.1:0" }), [8192, 4096, 2048, 1024, 512]);
  assert.deepEqual(await rows({ http: "127.0.0.1:0", kv_cache_tokens: 300 }), [300]);
  assert.deepEqual(await rows({ http: "127.0.0.1:0", max_num_seqs: 1 }), [2048, 1024, 512]);
  // "<|user|>", 1500 letters, "<|assistant|>", and a token to answer.
  writeFileSync(prompts, `short\n${"x".repeat(1500)}\n`);
  assert.deepEqual(await rows({ sample_prompts: prompts }), [8192, 4096, 2048, 1503]);
  await assert.rejects(open({ sample_prompts: prompts, kv_cache_tokens: 1502 }), {
    code: "PL_DATASET_INVALID",
    message: /prompt 2 has 1502 tokens/,
  });
  writeFileSync(prompts, "x".repeat(2050));
  await assert.rejects(open({ sample_prompts: prompts }), { code: "PL_DATASET_INVALID" });
  writeFileSync(prompts, "\n");
  await assert.rejects(open({ sample_prompts: prompts }), /holds no prompt/);
});
