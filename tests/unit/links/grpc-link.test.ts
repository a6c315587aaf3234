import assert from "node:assert/strict";
import { test } from "node:test";
import type { PipeloraError } from "../../../src/common/errors.ts";
import { GrpcLink, receiveGrpcTensors } from "../../../src/links/grpc-link.ts";
import type { TensorMessage } from "../../../src/links/link.ts";
import { Mailbox } from "../../../src/links/mailbox.ts";
import { listen } from "../../../src/rpc/server.ts";
import { NO_TRUST } from "../../../src/rpc/trust.ts";

async function pair(test: { after(fn: () => void): void }, session = "s") {
  const mailbox = new Mailbox(60_000);
  const server = await listen(
    "127.0.0.1:0",
    NO_TRUST,
    () => {},
    (grpc) =>
      receiveGrpcTensors(
        grpc,
        () => session,
        (key, tensor, taken) => mailbox.deliver(key, tensor, taken),
        (error) => mailbox.fail(error),
      ),
  );
  const broken: PipeloraError[] = [];
  const link = new GrpcLink({
    address: `127.0.0.1:${server.port}`,
    trust: NO_TRUST,
    session: "s",
    fromRank: 0,
    toRank: 1,
    windowBytes: 8 << 20,
    onBroken: (error) => broken.push(error),
  });
  test.after(() => {
    link.close();
    server.close();
  });
  return { mailbox, link, server, broken };
}

const message = (bytes: Uint8Array, shape: number[]): TensorMessage => ({ bytes, shape, dtype: "float32" });

test("tensors of any size arrive whole, under their keys", async (t) => {
  const { mailbox, link } = await pair(t);
  const large = Uint8Array.from({ length: 3 * (1 << 20) + 4 }, (_, index) => index % 251);
  await link.send("large", message(large, [large.length / 4]));
  await link.send("empty", message(new Uint8Array(0), [0]));
  const small = await Promise.all([mailbox.take("empty", "rank 0"), mailbox.take("large", "rank 0")]);
  assert.deepEqual(small[0].shape, [0]);
  assert.equal(Buffer.compare(small[1].bytes, large), 0);
  assert.equal(small[1].dtype, "float32");
});

test("a peer that does not take holds the sender back", async (t) => {
  const { mailbox, link } = await pair(t);
  const block = new Uint8Array(3 << 20);
  await link.send("0", message(block, [block.length / 4]));
  await link.send("1", message(block, [block.length / 4]));
  let sent = false;
  const third = link.send("2", message(block, [block.length / 4])).then(() => {
    sent = true;
  });
  await new Promise((resolve) => setTimeout(resolve, 300));
  assert.equal(sent, false);
  await mailbox.take("1", "rank 0");
  await third;
  assert.ok(sent);
  await mailbox.take("2", "rank 0");
});

test("frames of another session are dropped", async (t) => {
  const { mailbox, link } = await pair(t, "other");
  await link.send("x", message(new Uint8Array(4), [1]));
  const outcome = await Promise.race([
    mailbox.take("x", "rank 0").then(() => "came"),
    new Promise((resolve) => setTimeout(() => resolve("nothing"), 200)),
  ]);
  assert.equal(outcome, "nothing");
});

test("a link whose peer is gone says between which ranks", async (t) => {
  const { link, server, broken } = await pair(t);
  await link.send("x", message(new Uint8Array(4), [1]));
  server.close();
  await new Promise((resolve) => setTimeout(resolve, 300));
  assert.equal(broken.length, 1);
  assert.match(broken[0]!.message, /rank 0 to rank 1/);
  await assert.rejects(link.send("y", message(new Uint8Array(4), [1])), { code: "PL_LINK_FAILED" });
});
