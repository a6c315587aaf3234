import assert from "node:assert/strict";
import { test } from "node:test";
import { PipeloraError } from "../../../src/common/errors.ts";
import { Mailbox } from "../../../src/links/mailbox.ts";

const tensor = (value: number, release = () => {}) => ({
  shape: [1],
  dtype: "int32" as const,
  pieces: [Uint8Array.of(value, 0, 0, 0)],
  release,
});

test("a tensor may come before or after it is asked for", async () => {
  const mailbox = new Mailbox(0, 1000);
  mailbox.deliver("early", tensor(1));
  assert.equal((await mailbox.take("early", 1)).pieces[0]![0], 1);
  const late = mailbox.take("late", 1);
  assert.deepEqual([mailbox.awaits(1), mailbox.awaits(2)], [true, false]);
  mailbox.deliver("late", tensor(2));
  assert.equal(mailbox.awaits(1), false);
  assert.equal((await late).pieces[0]![0], 2);
});

test("what does not come in time fails by name", async () => {
  await assert.rejects(new Mailbox(3, 20).take("step 3/f/1/0", 2), {
    code: "PL_LINK_FAILED",
    message: /from rank 2 to rank 3.*step 3\/f\/1\/0/,
  });
});

test("a broken link rejects what is awaited now and later", async () => {
  const mailbox = new Mailbox(0, 1000);
  const now = mailbox.take("a", 1);
  mailbox.fail(new PipeloraError("PL_LINK_FAILED", "gone"));
  await assert.rejects(now, { code: "PL_LINK_FAILED" });
  await assert.rejects(mailbox.take("b", 1), { code: "PL_LINK_FAILED" });
});

test("clearing gives back the room of what nobody took", () => {
  const mailbox = new Mailbox(0, 1000);
  let freed = 0;
  mailbox.deliver(
    "x",
    tensor(1, () => freed++),
  );
  mailbox.clear();
  assert.equal(freed, 1);
});

test("clearing ends waiting at once, and the next step's tensors come as ever", async () => {
  const mailbox = new Mailbox(0, 60_000);
  const awaited = mailbox.take("step 1", 1);
  mailbox.clear();
  await assert.rejects(awaited, { code: "PL_LINK_FAILED", message: /given up/ });
  assert.equal(mailbox.awaits(1), false);
  const next = mailbox.take("step 2", 1);
  const sent = tensor(1, () => {});
  mailbox.deliver("step 2", sent);
  assert.equal(await next, sent);
});

test("what may come whenever it comes outlives a step that was given up, not a broken link", async () => {
  const mailbox = new Mailbox(0, 20);
  const command = mailbox.takeWhenever("command/0", 1);
  await new Promise((resolve) => setTimeout(resolve, 60));
  mailbox.clear();
  assert.equal(mailbox.awaits(1), false);
  mailbox.deliver("command/0", tensor(5));
  assert.equal((await command).pieces[0]![0], 5);
  const next = mailbox.takeWhenever("command/1", 1);
  mailbox.fail(new PipeloraError("PL_LINK_FAILED", "gone"));
  await assert.rejects(next, { code: "PL_LINK_FAILED" });
});
