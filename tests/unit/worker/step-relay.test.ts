import assert from "node:assert/strict";
import { test } from "node:test";
import { bytesOf } from "../../../src/common/bytes.ts";
import type { OutgoingTensor } from "../../../src/links/link.ts";
import { Mailbox } from "../../../src/links/mailbox.ts";
import type { ToWorker__Output } from "../../../src/rpc/generated/pipelora/v1/ToWorker.ts";
import { lossSum } from "../../../src/rpc/loss-sums.ts";
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
    // Ranks 0 and 1 share the head: the first and the third micro-batch are rank 0's.
    const sums = rank === 0 ? squares(0.1, 0, 0.3) : rank === 1 ? squares(0, 0.2, 0) : squares(0, 0, 0);
    const own = { sums, labelTokens: rank, correctTokens: 0, failure: null, failedMicroBatch: 0 };
    const pairs = { matrixIds: ids(rank), gradSquares: squares(rank + 0.5) };
    // Rank 0's failure is of a later micro-batch than rank 1's, and further down the pipeline rank 2 has none.
    const failure = rank === 2 ? null : { code: "PL_LOSS_NOT_FINITE", message: `rank ${rank}`, hint: "" };
    const broken = {
      sums: squares(rank, 0),
      labelTokens: 1,
      correctTokens: 0,
      failure,
      failedMicroBatch: rank === 0 ? 4 : 1,
    };
    return relays[rank]!.collect(`step ${step}`, {
      parts: [
        { losses: own, ...pairs },
        { losses: broken, matrixIds: ids(), gradSquares: squares() },
      ],
    });
  };
  for (const rank of [0, 1]) void relays[rank]!.listen((message) => answers.push(obey(rank, message)));
  for (const step of [1, 2]) {
    const command = decodeRequest(encodeRequest({ request: 70 + step, runStep: { step } }));
    const sums = await obey(2, command);
    assert.deepEqual(sums!.parts[0], {
      losses: { sums: squares(0.1, 0.2, 0.3), labelTokens: 3, correctTokens: 0, failure: null, failedMicroBatch: 0 },
      matrixIds: ids(2, 0, 1),
      gradSquares: squares(2.5, 0.5, 1.5),
    });
    // Added in the order of the micro-batches, whoever had them.
    assert.equal(lossSum(sums!.parts[0]!.losses), 0.1 + 0.2 + 0.3);
    // Each adapter's sums are its own, and so is what failed of it.
    const { sums: added, labelTokens, failure } = sums!.parts[1]!.losses!;
    assert.deepEqual([added, labelTokens, failure?.message], [squares(3, 0), 3, "rank 1"]);
  }
  assert.deepEqual(await Promise.all(answers), [null, null, null, null]);
  assert.deepEqual(heard.slice(0, 3), [
    "rank 2 step 1 request 71",
    "rank 0 step 1 request 0",
    "rank 1 step 1 request 0",
  ]);
});
