import assert from "node:assert/strict";
import { connect, createServer, type Socket } from "node:net";
import { type TestContext, test } from "node:test";
import type { PipeloraError } from "../../../src/common/errors.ts";
import { loadEngine } from "../../../src/engine/index.ts";
import { GrpcReceiver } from "../../../src/links/grpc-receiver.ts";
import { GrpcSender } from "../../../src/links/grpc-sender.ts";
import { serveSenders } from "../../../src/links/service.ts";
import { PROTOCOL_VERSION, protocol } from "../../../src/rpc/protocol.ts";
import { listen } from "../../../src/rpc/server.ts";
import { FRAME_HEAD, openFrame, sealFrame } from "../../../src/rpc/tensor-frame.ts";
import { type FrameSink, TensorClient } from "../../../src/rpc/tensor-stream.ts";
import { NO_TRUST } from "../../../src/rpc/trust.ts";
import {
  intoMailbox,
  type LinkSettings,
  linkSuite,
  type OpenLink,
  pattern,
  pause,
  sendWhenRoom,
  taker,
  tensor,
} from "./suite.ts";

const { crc32c } = loadEngine();
const refused = () => {};
const ends = { session: "s", fromRank: 0, toRank: 1 };

interface GrpcLink extends OpenLink {
  readonly sender: GrpcSender;
  readonly port: number;
  readonly notes: string[];
}

/** Both ends in this process; `through` may put something between them. `joined`: whether the sender's rank has joined yet. */
async function open(
  t: TestContext,
  settings: LinkSettings = {},
  through = async (port: number) => port,
  joined = () => true,
): Promise<GrpcLink> {
  const failures: PipeloraError[] = [];
  const notes: string[] = [];
  const timeoutMs = settings.timeoutMs ?? 20_000;
  const common = {
    ends,
    timeoutMs,
    note: (text: string) => notes.push(text),
    ...(settings.windowBytes === undefined ? {} : { windowBytes: settings.windowBytes }),
  };
  const sender = new GrpcSender({ ...common, onFailed: (error) => failures.push(error) }, crc32c);
  const server = await listen("127.0.0.1:0", NO_TRUST, refused, (grpc) =>
    serveSenders(grpc, () => (joined() ? sender : null)),
  );
  const { mailbox, options } = intoMailbox(ends, await through(server.port), settings, failures);
  const receiver = new GrpcReceiver({ ...options, note: common.note }, crc32c);
  t.after(() => {
    receiver.close();
    sender.close();
    server.close();
  });
  return { sender, mailbox, take: taker(mailbox, receiver), failures, port: server.port, notes };
}

linkSuite("grpc", (t, settings) => open(t, settings));

/** A relay on the way from the receiver to the sender. `toReceiver` sees what the sender says and may change or drop it. */
async function relay(
  t: TestContext,
  to: number,
  toReceiver: (data: Buffer, sockets: [Socket, Socket]) => Buffer | null,
) {
  const open = new Set<Socket>();
  const server = createServer((near) => {
    const far = connect(to, "127.0.0.1");
    for (const socket of [near, far]) {
      open.add(socket);
      socket.on("error", () => {});
      socket.on("close", () => [near, far].map((each) => each.destroy()));
    }
    near.on("data", (data) => far.write(data));
    far.on("data", (data) => {
      const passed = toReceiver(data, [near, far]);
      if (passed !== null && !near.write(passed)) {
        far.pause();
        near.once("drain", () => far.resume());
      }
    });
  });
  t.after(() => {
    server.close();
    for (const socket of open) socket.destroy();
  });
  return new Promise<number>((resolve) =>
    server.listen(0, "127.0.0.1", () => resolve((server.address() as { port: number }).port)),
  );
}

test("a frame is what the .proto says, byte for byte", () => {
  const payload = pattern(300, 9);
  const slab = Buffer.alloc(FRAME_HEAD + payload.length);
  slab.set(payload, FRAME_HEAD);
  const fields = { key: "step 1/f/2/3", shape: [5, 15], dtype: "float32", totalBytes: 300, sequence: 70_000 };
  const bytes = sealFrame(slab, payload.length, fields, crc32c);
  const { crc32c: sum, payload: came, ...rest } = protocol.Tensors.service.Pull.responseDeserialize(bytes);
  assert.deepEqual(rest, { ...fields, beside: false, protocol: PROTOCOL_VERSION });
  assert.equal(sum, crc32c(bytes.subarray(5)));
  assert.equal(Buffer.compare(came, payload), 0);
  assert.notEqual(openFrame(bytes, crc32c), null);
  for (let at = 0; at < bytes.length; at++) {
    bytes[at]! ^= 4;
    assert.equal(openFrame(bytes, crc32c), null, `byte ${at}`);
    bytes[at]! ^= 4;
  }
  assert.equal(openFrame(bytes.subarray(0, 100), crc32c), null);
});

test("the checksum is CRC-32C", () => {
  assert.equal(crc32c(Buffer.from("123456789")), 0xe3069283);
  assert.equal(crc32c(new Uint8Array(32)), 0x8a9136aa);
  assert.equal(crc32c(new Uint8Array(0)), 0);
});

/** Changes one byte of the payload in every chunk that `when` names. */
function corrupting(when: (count: number) => boolean) {
  let count = 0;
  return (data: Buffer) => {
    const at = data.indexOf("ABCDEFGHABCDEFGH");
    if (at >= 0 && when(count++)) data[at + 3]! ^= 1;
    return data;
  };
}

test("a corrupted frame is caught by its checksum and sent again", async (t) => {
  const { sender, take, failures, notes } = await open(t, {}, (port) =>
    relay(
      t,
      port,
      corrupting((count) => count === 7 || count === 40),
    ),
  );
  const bytes = Buffer.alloc(6 << 20, "ABCDEFGH");
  for (const key of ["a", "b"]) await sendWhenRoom(sender, key, tensor(bytes));
  for (const key of ["a", "b"]) {
    const came = await take(key);
    assert.equal(Buffer.compare(Buffer.concat(came.pieces), bytes), 0);
    came.release();
  }
  assert.deepEqual(failures, []);
  assert.equal(notes.length, 2);
  assert.match(notes[0]!, /rank 0 to rank 1.*corrupted/);
});

test("a frame that always comes corrupted fails the link by name", async (t) => {
  const { sender, take } = await open(t, {}, (port) =>
    relay(
      t,
      port,
      corrupting(() => true),
    ),
  );
  await sendWhenRoom(sender, "a", tensor(Buffer.alloc(1 << 16, "ABCDEFGH")));
  await assert.rejects(take("a"), { code: "PL_LINK_FAILED", message: /rank 0 to rank 1.*corrupted 4 times/ });
});

test("a broken stream is opened again and loses nothing", async (t) => {
  let passed = 0;
  let cuts = 0;
  const { sender, take, failures, notes } = await open(t, { windowBytes: 8 << 20 }, (port) =>
    relay(t, port, (data, [near, far]) => {
      passed += data.length;
      if (passed < (cuts + 1) * (5 << 20) || cuts >= 3) return data;
      cuts++;
      near.destroy();
      far.destroy();
      return null;
    }),
  );
  const all = Array.from({ length: 12 }, (_, i) => pattern(2 << 20, i));
  const sending = (async () => {
    for (const [i, bytes] of all.entries()) await sendWhenRoom(sender, `${i}`, tensor(bytes));
  })();
  for (const [i, bytes] of all.entries()) {
    const came = await take(`${i}`);
    assert.equal(Buffer.compare(Buffer.concat(came.pieces), bytes), 0, `tensor ${i}`);
    came.release();
  }
  await sending;
  assert.equal(cuts, 3);
  assert.ok(notes.length >= 3 && notes.every((note) => note.includes("was opened again")), notes.join());
  assert.deepEqual(failures, []);
});

test("a link that carries nothing any more is reported by both of its ends within the deadline", async (t) => {
  let passed = 0;
  // Counted once the link is open: on a busy machine opening takes its time.
  let counting = false;
  const { sender, take, failures } = await open(t, { timeoutMs: 500 }, (port) =>
    relay(t, port, (data) => {
      if (counting) passed += data.length;
      return passed > 1 << 20 ? null : data;
    }),
  );
  await sendWhenRoom(sender, "first", tensor(pattern(16, 1)));
  (await take("first")).release();
  counting = true;
  const started = performance.now();
  await sendWhenRoom(sender, "a", tensor(pattern(4 << 20, 1)));
  await assert.rejects(take("a"), { code: "PL_LINK_FAILED", message: /from rank 0 to rank 1/ });
  while (failures.length === 0) await pause(20);
  assert.match(failures[0]!.message, /from rank 0 to rank 1 \(grpc\) has stalled: no progress for 0\.5 s/);
  assert.ok(performance.now() - started < 2_500);
});

test("a sender that is gone for good fails the receiver within the deadline", async (t) => {
  const { sender, take, mailbox } = await open(t, { timeoutMs: 600 }, (port) =>
    relay(t, port, (data, sockets) => {
      if (gone) for (const socket of sockets) socket.destroy();
      return gone ? null : data;
    }),
  );
  let gone = false;
  await sendWhenRoom(sender, "a", tensor(pattern(16, 1)));
  (await take("a")).release();
  gone = true;
  const started = performance.now();
  await sendWhenRoom(sender, "b", tensor(pattern(16, 1)));
  await pause(700);
  await assert.rejects(mailbox.take("c", 0), { code: "PL_LINK_FAILED", message: /could not be opened for/ });
  assert.ok(performance.now() - started < 2_500);
});

test("a receiver may come before the sender has joined its session", async (t) => {
  let joined = false;
  const { sender, take } = await open(
    t,
    {},
    async (port) => port,
    () => joined,
  );
  await pause(100);
  joined = true;
  await sendWhenRoom(sender, "a", tensor(pattern(16, 1)));
  (await take("a")).release();
});

test("a peer of another protocol version is refused by name", async (t) => {
  const { port } = await open(t);
  const client = new TensorClient(`127.0.0.1:${port}`, NO_TRUST);
  t.after(() => client.close());
  const newer = { ...ends, protocol: PROTOCOL_VERSION + 1 };
  const pulled = await new Promise((resolve) => {
    const stream = client.pull(
      () => {},
      () => {},
      resolve,
    );
    stream.request({ open: newer, received: 0, grantedBytes: 1 });
  });
  const reason = `rank 1 speaks protocol ${PROTOCOL_VERSION + 1}, rank 0 ${PROTOCOL_VERSION}`;
  assert.deepEqual(pulled, { reason, code: "PL_PROTOCOL_MISMATCH" });
  assert.deepEqual(await client.share(newer), { reason, code: "PL_PROTOCOL_MISMATCH" });
});

test("frames of another protocol version are refused by name", async (t) => {
  const failures: PipeloraError[] = [];
  const older = sealFrame(
    Buffer.alloc(FRAME_HEAD + 4),
    4,
    { key: "a", shape: [1], dtype: "float32", totalBytes: 4, sequence: 0 },
    crc32c,
  );
  // The field's value is the last byte before the payload's tag and length.
  const at = older.length - 4 - 2 - 1;
  assert.equal(older[at], PROTOCOL_VERSION);
  older[at] = PROTOCOL_VERSION - 1;
  older.writeUInt32LE(crc32c(older.subarray(5)), 1);
  class OldSender extends GrpcSender {
    override attach(stream: FrameSink): void {
      stream.write(older, () => {});
    }
  }
  const old = new OldSender({ ends, timeoutMs: 5_000, onFailed: () => {} }, crc32c);
  const server = await listen("127.0.0.1:0", NO_TRUST, refused, (grpc) => serveSenders(grpc, () => old));
  const receiver = new GrpcReceiver(
    {
      ends,
      timeoutMs: 5_000,
      address: `127.0.0.1:${server.port}`,
      trust: NO_TRUST,
      deliver: () => assert.fail("it was taken"),
      isAwaited: () => true,
      onFailed: (error) => failures.push(error),
    },
    crc32c,
  );
  t.after(() => {
    receiver.close();
    old.close();
    server.close();
  });
  while (failures.length === 0) await pause(10);
  assert.equal(failures[0]!.code, "PL_PROTOCOL_MISMATCH");
  assert.match(failures[0]!.message, /rank 0 to rank 1.*sender speaks protocol \d+, this rank \d+/);
});

test("a slow receiver bounds what the sender holds in host memory", async (t) => {
  const window = 8 << 20;
  const message = 1 << 20;
  const { sender, take } = await open(t, { windowBytes: window });
  const bytes = pattern(message, 3);
  let most = 0;
  const sending = (async () => {
    for (let i = 0; i < 60; i++) {
      await sendWhenRoom(sender, `${i}`, tensor(bytes));
      most = Math.max(most, sender.heldBytes);
    }
  })();
  for (let i = 0; i < 60; i++) {
    await pause(5);
    (await take(`${i}`)).release();
  }
  await sending;
  assert.ok(most <= window + 2 * message, `${most} bytes were held`);
});
