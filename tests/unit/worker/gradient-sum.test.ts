import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import type { Engine } from "../../../src/engine/index.ts";
import type { OutgoingTensor } from "../../../src/links/link.ts";
import { Mailbox } from "../../../src/links/mailbox.ts";
import { NcclGroup } from "../../../src/links/nccl-group.ts";
import type { RankLinks } from "../../../src/worker/links.ts";
import { sumGradients } from "../../../src/worker/steps/gradient-sum.ts";
import { goldenRun } from "../../support/models/golden.ts";
import { wholeModel } from "../../support/models/one-engine.ts";
import { loadWithHostNccl } from "../links/host-nccl.ts";

const addon = loadWithHostNccl();

/** Ranks in one process, each with a mailbox, whose tensors arrive a moment after they are sent. */
function network(ranks: readonly number[]): Map<number, RankLinks> {
  const mailboxes = new Map(ranks.map((rank) => [rank, new Mailbox(rank, 5_000)]));
  const linksOf = (rank: number) => ({
    replicaGroup: null,
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
        return sumGradients(engine, links.get(rank)!, { ranks, position }, { name: "step 1/0", adapter: 0 });
      }),
    );
    const expected = new Float32Array(size);
    for (const values of own) for (let i = 0; i < size; i++) expected[i] = expected[i]! + values[i]!;
    for (const result of results) assert.deepEqual(result, expected);
  }
});

test("over a communicator the same bits come out, and no value leaves the engines for JavaScript", async (t) => {
  const { folder } = goldenRun("qwen1");
  const engines = await Promise.all(
    [0, 1, 2].map(() => wholeModel(join(folder, "model"), join(folder, "adapter_init"))),
  );
  const count = await engines[0]!.gradientCount();
  const own = engines.map(() =>
    Float32Array.from({ length: count }, () => (Math.random() - 0.5) * 10 ** (12 * Math.random() - 6)),
  );
  const expected = new Float32Array(count);
  for (const values of own) for (let i = 0; i < count; i++) expected[i] = expected[i]! + values[i]!;
  const ranks = [0, 2, 4];
  const id = addon.ncclUniqueId();
  const groups = engines.map(
    (_, position) =>
      new NcclGroup({ addon, device: "cpu", id, timeoutMs: 10_000, ranks, position, onFailed: assert.ifError }),
  );
  t.after(async () => {
    for (const group of groups) group.close();
    for (const engine of engines) await engine.close();
  });
  const sent = await Promise.all(
    engines.map(async (engine, position) => {
      await engine.setGradients(own[position]!);
      const links = { replicaGroup: groups[position]! } as unknown as RankLinks;
      return sumGradients(engine, links, { ranks, position }, { name: "step 1/0", adapter: 0 });
    }),
  );
  assert.ok(Math.abs(sent[0]! - (4 * count * 4) / 3) < 64, `${sent[0]} bytes of ${4 * count}`);
  for (const engine of engines) assert.deepEqual(await engine.gradients(), expected);
});

test("a replica that is gone fails the sum by name, and the others' group", async (t) => {
  const id = addon.ncclUniqueId();
  const failures: Error[] = [];
  const groups = [0, 1].map(
    (position) =>
      new NcclGroup({
        ...{ addon, device: "cpu", id, timeoutMs: 10_000, ranks: [1, 3], position },
        onFailed: (error) => failures.push(error),
      }),
  );
  t.after(() => groups[0]!.close());
  await Promise.all(groups.map((group) => group.opened));
  const place = groups[0]!.place(64);
  const waiting = groups[0]!.exchange([{ sends: false, peer: 1, place, offset: 0, bytes: 64 }]);
  groups[1]!.close();
  await assert.rejects(waiting, {
    code: "PL_LINK_FAILED",
    message: /the communicator of ranks 1, 3 \(nccl\) broke: .*rank 1 is gone/,
  });
  assert.equal(failures.length, 1);
});
