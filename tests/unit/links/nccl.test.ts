import assert from "node:assert/strict";
import { fork } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import type { PipeloraError } from "../../../src/common/errors.ts";
import { GrpcReceiver } from "../../../src/links/grpc-receiver.ts";
import { GrpcSender } from "../../../src/links/grpc-sender.ts";
import { NcclReceivingCarrier, NcclSendingCarrier } from "../../../src/links/nccl-carrier.ts";
import { serveSenders } from "../../../src/links/service.ts";
import { listen } from "../../../src/rpc/server.ts";
import { NO_TRUST } from "../../../src/rpc/trust.ts";
import { fromHost } from "../../../src/worker/tensors.ts";
import { fromDeviceMemory, loadWithHostNccl, visible } from "./host-nccl.ts";
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

const addon = loadWithHostNccl();
const refused = () => {};
const ends = { session: "s", fromRank: 0, toRank: 1 };

function receiveFrom(port: number, id: Uint8Array, settings: LinkSettings, failures: PipeloraError[]) {
  const { mailbox, options } = intoMailbox(ends, port, settings, failures);
  const { timeoutMs } = options;
  const receiver = new GrpcReceiver(
    { ...options, deliver: (key, came) => mailbox.deliver(key, visible(came)) },
    addon.crc32c,
    (onFailed) => new NcclReceivingCarrier({ addon, device: "cpu", id, timeoutMs }, onFailed),
  );
  return { mailbox, receiver, take: taker(mailbox, receiver) };
}

interface NcclLink extends OpenLink {
  /** Sends what lies in host memory too. */
  readonly bare: GrpcSender;
  readonly receiver: GrpcReceiver;
}

/** Both ends in this process. */
async function open(t: TestContext, settings: LinkSettings = {}): Promise<NcclLink> {
  const failures: PipeloraError[] = [];
  const id = addon.ncclUniqueId();
  const timeoutMs = settings.timeoutMs ?? 20_000;
  const window = settings.windowBytes === undefined ? {} : { windowBytes: settings.windowBytes };
  const bare = new GrpcSender(
    { ends, timeoutMs, ...window, onFailed: (error) => failures.push(error) },
    addon.crc32c,
    (onFailed) => new NcclSendingCarrier({ addon, device: "cpu", id, timeoutMs }, onFailed),
  );
  const server = await listen("127.0.0.1:0", NO_TRUST, refused, (grpc) => serveSenders(grpc, () => bare));
  const { mailbox, receiver, take } = receiveFrom(server.port, id, settings, failures);
  t.after(() => {
    receiver.close();
    bare.close();
    server.close();
  });
  return { sender: fromDeviceMemory(bare), bare, receiver, mailbox, take, failures };
}

linkSuite("nccl", open);

test("tensors of device memory never lie in frames; those of host memory do, in between", async (t) => {
  const { sender, bare, receiver, mailbox } = await open(t);
  await Promise.all([bare.opened(), receiver.opened()]);
  for (let i = 0; i < 5; i++) {
    await sendWhenRoom(sender, `device ${i}`, tensor(pattern(100_000, i)));
    await sendWhenRoom(bare, `host ${i}`, fromHost(pattern(1000, i), [250], "float32"));
  }
  for (let i = 0; i < 5; i++) {
    const [device, host] = await Promise.all([mailbox.take(`device ${i}`, 0), mailbox.take(`host ${i}`, 0)]);
    assert.equal(device.place?.bytes, 100_000);
    assert.equal(Buffer.compare(Buffer.from(device.pieces[0]!), pattern(100_000, i)), 0);
    assert.equal(host.place, undefined);
    assert.equal(Buffer.compare(Buffer.concat(host.pieces), pattern(1000, i)), 0);
    device.release();
    host.release();
  }
});

test("copies that end in another order than they began leave in the order of sends", async (t) => {
  const { bare, take } = await open(t);
  const late = (bytes: Uint8Array, ms: number) => ({
    ...fromHost(bytes, [bytes.length / 4], "float32"),
    copyToPlace: async (place: { memory: ArrayBuffer | null }) => {
      await pause(ms);
      new Uint8Array(place.memory!).set(bytes);
    },
  });
  const all = Array.from({ length: 6 }, (_, i) => pattern(4000 * (i + 1), i));
  const sending = Promise.all(all.map((bytes, i) => bare.send(`${i}`, late(bytes, 60 - 10 * i))));
  for (const [i, bytes] of all.entries()) {
    const came = await take(`${i}`);
    assert.equal(Buffer.compare(Buffer.from(came.pieces[0]!), bytes), 0, `tensor ${i}`);
    came.release();
  }
  await sending;
});

test("a sender that is killed fails what waits for it, by name, long before the deadline", async (t) => {
  const peer = fork(join(import.meta.dirname, "nccl-peer.ts"), { execArgv: ["--import", "tsx"] });
  t.after(() => peer.kill("SIGKILL"));
  const [{ port, id }] = (await once(peer, "message")) as [{ port: number; id: string }];
  const failures: PipeloraError[] = [];
  const { receiver, take } = receiveFrom(port, Buffer.from(id, "hex"), {}, failures);
  t.after(() => receiver.close());
  const came = await take("first");
  const waiting = take("second");
  waiting.catch(() => {});
  peer.kill("SIGKILL");
  const started = performance.now();
  await assert.rejects(waiting, {
    code: "PL_LINK_FAILED",
    message: /the link from rank 0 to rank 1 \(nccl\) broke: .*remote process exited.*rank 0 is gone/,
    hint: /--link shm or --link grpc/,
  });
  assert.ok(performance.now() - started < 3_000);
  assert.equal(Buffer.compare(Buffer.from(came.pieces[0]!), pattern(1 << 20, 1)), 0, "what came stays readable");
  came.release();
  assert.equal(failures.length, 1);
});

test("an end that never comes fails the opening of the other within the deadline, by name", async (t) => {
  const failures: PipeloraError[] = [];
  const id = addon.ncclUniqueId();
  const sender = new GrpcSender(
    { ends, timeoutMs: 300, onFailed: (error) => failures.push(error) },
    addon.crc32c,
    (onFailed) => new NcclSendingCarrier({ addon, device: "cpu", id, timeoutMs: 300 }, onFailed),
  );
  t.after(() => sender.close());
  await assert.rejects(sender.opened(), {
    code: "PL_LINK_FAILED",
    message: "the link from rank 0 to rank 1 (nccl) broke: not every rank of it came within 0.3 s",
  });
  await assert.rejects(sender.send("x", tensor(pattern(16, 1))), { code: "PL_LINK_FAILED" });
  assert.equal(failures.length, 1);
});

test("an announcement that an end without NCCL gets is an error by name", async (t) => {
  const failures: PipeloraError[] = [];
  const id = addon.ncclUniqueId();
  const timeoutMs = 5_000;
  const sender = new GrpcSender({ ends, timeoutMs, onFailed: () => {} }, addon.crc32c, (onFailed) => {
    const carrier = new NcclSendingCarrier({ addon, device: "cpu", id, timeoutMs }, onFailed);
    carrier.send = async (_tensor, announce) => announce();
    return carrier;
  });
  const server = await listen("127.0.0.1:0", NO_TRUST, refused, (grpc) => serveSenders(grpc, () => sender));
  const receiver = new GrpcReceiver(
    {
      ends,
      timeoutMs,
      address: `127.0.0.1:${server.port}`,
      trust: NO_TRUST,
      deliver: () => assert.fail("it was taken"),
      isAwaited: () => true,
      onFailed: (error) => failures.push(error),
    },
    addon.crc32c,
  );
  t.after(() => {
    receiver.close();
    sender.close();
    server.close();
  });
  await fromDeviceMemory(sender).send("a", tensor(pattern(16, 1)));
  while (failures.length === 0) await pause(10);
  assert.match(failures[0]!.message, /rank 0 to rank 1 \(grpc\): tensor a of float32 was announced/);
});
