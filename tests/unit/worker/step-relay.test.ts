import assert from "node:assert/strict";
import { test } from "node:test";
import { bytesOf } from "../../../src/common/bytes.ts";
import type { OutgoingTensor } from "../../../src/links/link.ts";
import { Mailbox } from "../../../src/links/mailbox.ts";
import type { ToWorker__Output } from "../../../src/rpc/generated/pipelora/v1/ToWorker.ts";
import { decodeRequest, encodeRequest } from "../../../src/rpc/protocol.ts";
import type { RankLinks } from "../../../src/worker/links.ts";
import { StepRelay } from "../../../src/worker/steps/step-relay.ts";

/** Ranks of one process: what one sends lies in the other's mailbox. */
function ranksOf(count: number): RankLinks[] {
  const mailboxes = Array.from({ length: count }, (_, rank) => new Mailbox(rank, 1000));
  const bytesOf = async (tensor: ReturnType<Mailbox["take"]>) => Buffer.concat((await tensor).pieces);
  return mailboxes.map((mailbox) => {
    const links = {
      sendWhole: async (to: number, key: string, tensor: OutgoingTensor) => {
        const bytes = Buffer.alloc(tensor.byteLength);
        await tensor.copyTo([bytes]);
        const { shape, dtype } = tensor;
        mailboxes[to]!.deliver(key, { shape, dtype, pieces: [bytes], release: () => {} });
      },
      receiveBytes: (from: number, key: string) => bytesOf(mailbox.take(key, from)),
      receiveBytesWhenever: (from: number, key: string) => bytesOf(mailbox.takeWhenever(key, from)),
    };
    return links as unknown as RankLinks;
  });
}

const ids = (...values: number[]) => bytesOf(Int32Array.from(values));
const squares = (...values: number[]) => bytesOf(Float64Array.from(values));

test("commands go down the pipeline in its order, sums come up it and lie in that order too", async () => {
  const pipeline = [2, 0, 1];
  const relays = ranksOf(3).map((links, rank) => new StepRelay(links, pipeline, rank));
  const heard: string[] = [];
  const answers: Promise<unknown>[] = [];
  const obey = async (rank: number, message: ToWorker__Output) => {
    const { step } = message.runStep!;
    heard.push(`rank ${rank} step ${step} request ${message.request}`);
    await relays[rank]!.passOn(message);
    const own = { lossSum: rank === 1 ? 2.5 : 0, labelTokens: rank, correctTokens: 0 };
    const pairs = { matrixIds: ids(rank), gradSquares: squares(rank + 0.5) };
    const failure = rank === 1 ? { code: "PL_LOSS_NOT_FINITE", message: "NaN", hint: "" } : null;
    const other = { ...{ lossSum: rank, labelTokens: 1, correctTokens: 0 }, matrixIds: ids(), gradSquares: squares() };
    return relays[rank]!.collect(`step ${step}`, {
      parts: [
        { ...own, ...pairs, failure: null },
        { ...other, failure },
      ],
    });
  };
  for (const rank of [0, 1]) void relays[rank]!.listen((message) => answers.push(obey(rank, message)));
  for (const step of [1, 2]) {
    const command = decodeRequest(encodeRequest({ request: 70 + step, runStep: { step } }));
    const sums = await obey(2, command);
    assert.deepEqual(sums!.parts[0], {
      ...{ lossSum: 2.5, labelTokens: 3, correctTokens: 0 },
      matrixIds: ids(2, 0, 1),
      gradSquares: squares(2.5, 0.5, 1.5),
      failure: null,
    });
    // Each adapter's sums are its own, and so is what failed of it.
    assert.deepEqual([sums!.parts[1]!.lossSum, sums!.parts[1]!.labelTokens], [3, 3]);
    assert.equal(sums!.parts[1]!.failure?.message, "NaN");
  }
  assert.deepEqual(await Promise.all(answers), [null, null, null, null]);
  assert.deepEqual(heard.slice(0, 3), [
    "rank 2 step 1 request 71",
    "rank 0 step 1 request 0",
    "rank 1 step 1 request 0",
  ]);
});
