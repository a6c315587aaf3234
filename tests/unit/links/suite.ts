import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import type { Dtype } from "../../../src/common/dtype.ts";
import type { PipeloraError } from "../../../src/common/errors.ts";
import type { IncomingTensor, OutgoingTensor, ReceivingEnd, SendingEnd } from "../../../src/links/link.ts";
import { Mailbox } from "../../../src/links/mailbox.ts";
import type { ReceiverOptions } from "../../../src/links/options.ts";
import { NO_TRUST } from "../../../src/rpc/trust.ts";
import { fromHost } from "../../../src/worker/tensors.ts";

export interface OpenLink {
  readonly sender: SendingEnd;
  /** Of rank 1; rank 0 sends. */
  readonly mailbox: Mailbox;
  /** What a rank does: take, and let the receiving end know. */
  readonly take: (key: string) => Promise<IncomingTensor>;
  /** Errors that either end reported. */
  readonly failures: PipeloraError[];
}

export interface LinkSettings {
  readonly windowBytes?: number;
  readonly timeoutMs?: number;
}

/** A mailbox, and the options of a receiver that delivers into it from the sender at `port`. Failures are kept, and end the mailbox. */
export function intoMailbox(
  ends: ReceiverOptions["ends"],
  port: number,
  { timeoutMs = 20_000, windowBytes }: LinkSettings,
  failures: PipeloraError[],
): { readonly mailbox: Mailbox; readonly options: ReceiverOptions } {
  const mailbox = new Mailbox(1, timeoutMs);
  const options: ReceiverOptions = {
    ends,
    timeoutMs,
    ...(windowBytes === undefined ? {} : { windowBytes }),
    address: `127.0.0.1:${port}`,
    trust: NO_TRUST,
    deliver: (key, came) => mailbox.deliver(key, came),
    isAwaited: () => mailbox.awaits(0),
    onFailed: (error) => {
      failures.push(error);
      mailbox.fail(error);
    },
  };
  return { mailbox, options };
}

export type OpenLinkFor = (t: TestContext, settings?: LinkSettings) => Promise<OpenLink>;

/** Takes tensors of rank 0 as a rank does: the link is told of each that is waited for. */
export function taker(mailbox: Mailbox, receiver: ReceivingEnd): (key: string) => Promise<IncomingTensor> {
  return (key) => {
    const came = mailbox.take(key, 0);
    receiver.awaited();
    return came;
  };
}

export function tensor(bytes: Uint8Array, dtype: Dtype = "float32", shape = [bytes.length / 4]): OutgoingTensor {
  const whole = fromHost(bytes, shape, dtype);
  return {
    ...whole,
    copyTo: async (pieces) => {
      await whole.copyTo(pieces);
      assert.equal(
        pieces.reduce((sum, piece) => sum + piece.length, 0),
        bytes.length,
      );
    },
  };
}

/** Bytes that tell their tensor and their place in it. */
export function pattern(length: number, seed: number): Uint8Array {
  const words = new Uint32Array(Math.ceil(length / 4));
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(i + 1, 2654435761) ^ seed;
  return new Uint8Array(words.buffer, 0, length);
}

export const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

export async function sendWhenRoom(sender: SendingEnd, key: string, what: OutgoingTensor): Promise<void> {
  for (let room = sender.room(); room !== null; room = sender.room()) await room;
  await sender.send(key, what);
}

function same(came: IncomingTensor, bytes: Uint8Array): boolean {
  return Buffer.compare(Buffer.concat(came.pieces), bytes) === 0;
}

/** What every link does, whatever carries it. */
export function linkSuite(kind: string, open: OpenLinkFor): void {
  test(`${kind}: tensors of any size arrive whole, as what they were, under their keys`, async (t) => {
    const { sender, take } = await open(t);
    const large = pattern(3 * (1 << 20) + 12, 1);
    const half = pattern(2 * 7 * 5, 2);
    await sendWhenRoom(sender, "large", tensor(large));
    await sendWhenRoom(sender, "empty", tensor(new Uint8Array(0), "int32", [0]));
    await sendWhenRoom(sender, "half", tensor(half, "bfloat16", [7, 5]));
    const [empty, bf16, f32] = await Promise.all([take("empty"), take("half"), take("large")]);
    assert.deepEqual([empty.shape, empty.dtype, same(empty, new Uint8Array(0))], [[0], "int32", true]);
    assert.deepEqual([bf16.shape, bf16.dtype, same(bf16, half)], [[7, 5], "bfloat16", true]);
    assert.deepEqual([f32.shape, f32.dtype, same(f32, large)], [[large.length / 4], "float32", true]);
    for (const came of [empty, bf16, f32]) came.release();
  });

  test(`${kind}: hundreds of tensors, taken in another order than sent, through a small window`, async (t) => {
    const { sender, take, failures } = await open(t, { windowBytes: 1 << 20 });
    const bytes = Array.from({ length: 300 }, (_, i) => pattern(4 * ((i * 7919) % 40_000), i));
    const sending = (async () => {
      for (const [i, each] of bytes.entries()) await sendWhenRoom(sender, `t${i}`, tensor(each));
    })();
    // Neighbours in groups of eight backwards: some of them only come because they are asked for.
    const order = bytes.map((_, i) => ((i >> 3) << 3) + Math.min(7, bytes.length - 1 - ((i >> 3) << 3)) - (i & 7));
    await Promise.all(
      order.map(async (i) => {
        const came = await take(`t${i}`);
        assert.ok(same(came, bytes[i]!), `tensor ${i}`);
        came.release();
      }),
    );
    await sending;
    assert.deepEqual(failures, []);
  });

  test(`${kind}: a peer that does not take holds the sender back, and a release lets it on`, async (t) => {
    const { sender, take } = await open(t, { windowBytes: 8 << 20 });
    const block = pattern(3 << 20, 5);
    for (const key of ["0", "1", "2"]) await sendWhenRoom(sender, key, tensor(block));
    let sent = false;
    const fourth = sendWhenRoom(sender, "3", tensor(block)).then(() => {
      sent = true;
    });
    await pause(200);
    assert.equal(sent, false);
    const taken = await take("1");
    await pause(100);
    assert.equal(sent, false, "a tensor in use has its room still");
    taken.release();
    await fourth;
    for (const key of ["2", "3", "0"]) (await take(key)).release();
  });

  test(`${kind}: what somebody waits for comes, though the window is full of what nobody takes`, async (t) => {
    const { sender, take, failures } = await open(t, { windowBytes: 1 << 20 });
    const block = pattern(600_000, 6);
    const sending = (async () => {
      for (let i = 0; i < 8; i++) await sendWhenRoom(sender, `${i}`, tensor(block));
    })();
    await pause(50);
    assert.ok(same(await take("7"), block));
    await sending;
    for (let i = 0; i < 7; i++) assert.ok(same(await take(`${i}`), block));
    assert.deepEqual(failures, []);
  });

  test(`${kind}: a peer that takes nothing for too long is reported with both ends`, async (t) => {
    const { sender, failures } = await open(t, { windowBytes: 1 << 20, timeoutMs: 300 });
    await sendWhenRoom(sender, "a", tensor(pattern(2 << 20, 1)));
    await assert.rejects(sendWhenRoom(sender, "b", tensor(pattern(16, 1))), {
      code: "PL_LINK_FAILED",
      message: new RegExp(`the link from rank 0 to rank 1 \\(${kind}\\) has stalled.*0\\.3 s`),
    });
    assert.equal(failures.length, 1);
  });

  test(`${kind}: a tensor that does not come in time is reported with both ends`, async (t) => {
    const { take } = await open(t, { timeoutMs: 200 });
    await assert.rejects(take("never"), { code: "PL_LINK_FAILED", message: /from rank 0 to rank 1.*never.*0\.2 s/ });
  });

  test(`${kind}: after it was closed a link sends nothing`, async (t) => {
    const { sender } = await open(t);
    sender.close();
    await assert.rejects(sendWhenRoom(sender, "x", tensor(pattern(4, 1))), { code: "PL_LINK_FAILED" });
  });
}
