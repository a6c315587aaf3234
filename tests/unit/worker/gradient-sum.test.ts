import assert from "node:assert/strict";
import { test } from "node:test";
import type { Engine } from "../../../src/engine/index.ts";
import type { OutgoingTensor } from "../../../src/links/link.ts";
import { Mailbox } from "../../../src/links/mailbox.ts";
import { sumGradients } from "../../../src/worker/gradient-sum.ts";
import type { RankLinks } from "../../../src/worker/links.ts";

/** Ranks in one process, each with a mailbox, whose tensors arrive a moment after they are sent. */
function network(ranks: readonly number[]): Map<number, RankLinks> {
  const mailboxes = new Map(ranks.map((rank) => [rank, new Mailbox(rank, 5_000)]));
  const linksOf = (rank: number) => ({
    sendWhole: async (to: number, key: string, { shape, dtype, byteLength, copyTo }: OutgoingTensor) => {
      const bytes = Buffer.alloc(byteLength);
      await copyTo([bytes]);
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 3));
      mailboxes.get(to)!.deliver(key, { shape, dtype, pieces: [bytes], release: () => {} });
    },
    receiveBytes: async (from: number, key: string) =>
      Buffer.concat((await mailboxes.get(rank)!.take(key, from)).pieces),
  });
  return new Map(ranks.map((rank) => [rank, linksOf(rank) as unknown as RankLinks]));
}

test("all replicas end with the same sum, added in the replicas' order", async () => {
  for (const [count, size] of [
    [2, 1000],
    [3, 7],
    [5, 3],
  ] as const) {
    const ranks = Array.from({ length: count }, (_, replica) => 4 * replica + 1);
    const links = network(ranks);
    const own = ranks.map(() => Float32Array.from({ length: size }, () => Math.random() * 10 ** (6 * Math.random())));
    const results: Float32Array[] = [];
    await Promise.all(
      ranks.map((rank, position) => {
        const engine = {
          gradients: async () => own[position]!,
          setGradients: async (values: Float32Array) => {
            results[position] = values;
          },
        } as unknown as Engine;
        return sumGradients(engine, links.get(rank)!, { ranks, position }, "step 1/0");
      }),
    );
    const expected = new Float32Array(size);
    for (const values of own) for (let i = 0; i < size; i++) expected[i] = expected[i]! + values[i]!;
    for (const result of results) assert.deepEqual(result, expected);
  }
});
