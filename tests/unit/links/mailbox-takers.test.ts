import assert from "node:assert/strict";
import { test } from "node:test";
import { Mailbox } from "../../../src/links/mailbox.ts";

test("a second taker of a tensor is told so, and the first still gets it", async () => {
  const mailbox = new Mailbox(0, 1_000);
  const first = mailbox.take("step 1/f/0/0", 1);
  await assert.rejects(mailbox.take("step 1/f/0/0", 1), { code: "PL_INTERNAL", message: /awaited already/ });
  const tensor = { shape: [1], dtype: "float32" as const, pieces: [], release: () => {} };
  mailbox.deliver("step 1/f/0/0", tensor);
  assert.equal(await first, tensor);
});
