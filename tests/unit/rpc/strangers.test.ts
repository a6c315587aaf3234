import assert from "node:assert/strict";
import { EventEmitter } from "node:events";
import { connect } from "node:net";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { gzipSync } from "node:zlib";
import { status } from "@grpc/grpc-js";
import { Health } from "../../../src/rpc/health.ts";
import { decodeReply, decodeRequest, encodeReply, encodeRequest } from "../../../src/rpc/protocol.ts";
import { Refusals } from "../../../src/rpc/refusals.ts";
import { listen } from "../../../src/rpc/server.ts";
import { serveCoordination, WorkerConnection } from "../../../src/rpc/worker-connection.ts";
import { rawCall } from "../../support/processes/raw-call.ts";

const SESSION = "/pipelora.v1.Coordination/Session";
const STRANGER_BYTES = 1 << 20;

async function serve(t: { after(fn: () => void): void }, token: string | null) {
  const refused: string[] = [];
  const hellos: string[] = [];
  const server = await listen(
    "127.0.0.1:0",
    { tls: null, token: () => token },
    (_peer, reason) => refused.push(reason),
    (grpc) => {
      new Health().serve(grpc);
      serveCoordination(grpc, {
        onHello: (connection) => {
          hellos.push(connection.hello.node);
          server.believe(connection.peer);
        },
        onLeaving: () => {},
        onClosed: () => {},
      });
    },
    { memberBytes: 1 << 28, strangerBytes: STRANGER_BYTES },
  );
  t.after(() => server.close());
  return { port: server.port, refused, hellos };
}

for (const encoding of ["gzip", "deflate", "br", "x"]) {
  test(`a call with ${encoding} messages is refused before one is unpacked`, async (t) => {
    const { port, refused } = await serve(t, null);
    const call = rawCall(port, SESSION, { "grpc-encoding": encoding });
    call.send(gzipSync(Buffer.alloc(1 << 24)));
    await call.ended;
    assert.equal(call.status, status.UNAUTHENTICATED);
    assert.deepEqual(refused, ["its messages are compressed"]);
  });
}

test("whoever has not said who it is may send a megabyte, and a member what it likes", async (t) => {
  const { port, refused, hellos } = await serve(t, null);
  const stranger = rawCall(port, SESSION);
  stranger.send(Buffer.alloc(64 << 20));
  await Promise.race([stranger.ended, sleep(5_000)]);
  assert.match(refused.join(), /it sent over 1048576 bytes/);

  const member = rawCall(port, SESSION);
  member.send(encodeReply({ replyTo: 0, hello: { node: "n1" } } as never));
  while (hellos.length === 0) await sleep(5);
  member.send(encodeReply({ replyTo: 1, matrixTensor: { values: Buffer.alloc(8 << 20) } } as never));
  await sleep(300);
  assert.equal(member.status, null);
  assert.equal(refused.length, 1);
  member.close();
});

test("a call without the token is ended at once, and its connection with it", async (t) => {
  const { port, refused } = await serve(t, "a secret");
  const call = rawCall(port, SESSION);
  call.send(Buffer.alloc(64 << 20));
  await call.ended;
  assert.match(refused.join(), /no join token/);
});

test("a connection that says nothing is closed after ten seconds", async (t) => {
  const { port, refused } = await serve(t, "a secret");
  const socket = connect(port, "127.0.0.1");
  socket.resume();
  const began = performance.now();
  await new Promise((resolve) => socket.once("close", resolve));
  assert.ok(performance.now() - began < 13_000);
  assert.match(refused.join(), /asked for nothing within 10 s/);
});

test("refusals of one reason are counted, not told one by one", () => {
  const told: string[] = [];
  const refusals = new Refusals((peer, reason) => told.push(`${peer}: ${reason}`));
  for (let peer = 0; peer < 1_000; peer++) refusals.add(`p${peer}`, "no token");
  for (let reason = 0; reason < 1_000; reason++) refusals.add("q", `reason ${reason}`);
  assert.ok(told.length < 150, `${told.length} lines`);
  refusals.flush();
  assert.ok(told.some((line) => line.startsWith("995 more peers: no token")));
});

test("one damaged bit of a control message is noticed, wherever it is", () => {
  const up = encodeReply({
    replyTo: 3,
    stepResult: { parts: [{ losses: { labelTokens: 7, failedMicroBatch: 5 } }] },
  } as never);
  const down = encodeRequest({ request: 4, applyUpdate: { step: 1, gradScale: 1e-4 } } as never);
  assert.equal(decodeReply(up).stepResult?.parts[0]?.losses?.failedMicroBatch, 5);
  assert.equal(decodeRequest(down).applyUpdate?.gradScale, 1e-4);
  for (const [bytes, decode] of [[up, decodeReply] as const, [down, decodeRequest] as const]) {
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      const damaged = Buffer.from(bytes);
      damaged[bit >> 3] = damaged[bit >> 3]! ^ (1 << (bit & 7));
      assert.throws(() => decode(damaged), /came damaged/);
    }
    for (let length = 0; length < bytes.length; length++) assert.throws(() => decode(bytes.subarray(0, length)));
  }
});

test("a reply that never comes loses the worker by name, and so does a stream without hello", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const stream = () => Object.assign(new EventEmitter(), { write: () => true, end: () => {}, getPeer: () => "p" });
  const lost: string[] = [];
  const events = {
    onHello: () => {},
    onLeaving: () => {},
    onClosed: (_: WorkerConnection, error: Error) => lost.push(error.message),
  };
  const own = stream();
  const connection = new WorkerConnection(own as never, events);
  own.emit("data", { replyTo: 0, body: "hello", hello: { node: "n", device: "cpu", pid: 1 } });
  const reply = connection.requestWithParts({ importMatrices: { tensors: 1 } }, []);
  t.mock.timers.tick(10 * 60_000);
  await assert.rejects(reply, { code: "PL_WORKER_LOST", message: /gave no reply to importMatrices within 600 s/ });
  new WorkerConnection(stream() as never, events);
  t.mock.timers.tick(10_000);
  assert.match(lost.at(-1)!, /said no hello within 10 s/);
});
