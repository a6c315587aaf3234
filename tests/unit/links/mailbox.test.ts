import assert from "node:assert/strict";
import { test } from "node:test";
import { PipeloraError } from "../../../src/common/errors.ts";
import { Mailbox } from "../../../src/links/mailbox.ts";

const tensor = (value: number) => ({ shape: [1], dtype: "int32" as const, bytes: Uint8Array.of(value, 0, 0, 0) });

test("a tensor may come before or after it is asked for; its room is free once it is taken", async () => {
  const mailbox = new Mailbox(1000);
  const freed: string[] = [];
  mailbox.deliver("early", tensor(1), () => freed.push("early"));
  assert.equal(freed.length, 0);
  assert.equal((await mailbox.take("early", "rank 0")).bytes[0], 1);
  const late = mailbox.take("late", "rank 0");
  mailbox.deliver("late", tensor(2), () => freed.push("late"));
  assert.equal((await late).bytes[0], 2);
  assert.deepEqual(freed, ["early", "late"]);
});

test("what does not come in time fails by name", async () => {
  await assert.rejects(new Mailbox(20).take("step 3/f/1/0", "rank 2"), (error: PipeloraError) => {
    assert.equal(error.code, "PL_LINK_FAILED");
    assert.match(error.message, /step 3\/f\/1\/0.*rank 2/);
    return true;
  });
});

test("a broken link rejects what is awaited now and later", async () => {
  const mailbox = new Mailbox(1000);
  const now = mailbox.take("a", "rank 1");
  mailbox.fail(new PipeloraError("PL_LINK_FAILED", "gone"));
  await assert.rejects(now, { code: "PL_LINK_FAILED" });
  await assert.rejects(mailbox.take("b", "rank 1"), { code: "PL_LINK_FAILED" });
});

test("clearing gives back the room of what nobody took", () => {
  const mailbox = new Mailbox(1000);
  let freed = 0;
  mailbox.deliver("x", tensor(1), () => freed++);
  mailbox.clear();
  assert.equal(freed, 1);
});
