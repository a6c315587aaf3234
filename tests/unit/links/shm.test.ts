import assert from "node:assert/strict";
import { fork } from "node:child_process";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import type { PipeloraError } from "../../../src/common/errors.ts";
import { loadEngine } from "../../../src/engine/index.ts";
import { serveSenders } from "../../../src/links/service.ts";
import { ShmReceiver } from "../../../src/links/shm-receiver.ts";
import { ShmSender } from "../../../src/links/shm-sender.ts";
import { listen } from "../../../src/rpc/server.ts";
import { NO_TRUST } from "../../../src/rpc/trust.ts";
import {
  intoMailbox,
  type LinkSettings,
  linkSuite,
  type OpenLink,
  pattern,
  sendWhenRoom,
  taker,
  tensor,
} from "./suite.ts";

const addon = loadEngine();
const refused = () => {};
const ends = { session: "s", fromRank: 0, toRank: 1 };

function receiveFrom(port: number, settings: LinkSettings, failures: PipeloraError[]) {
  const { mailbox, options } = intoMailbox(ends, port, settings, failures);
  const receiver = new ShmReceiver(options, addon);
  return { mailbox, receiver, take: taker(mailbox, receiver) };
}

/** Both ends in this process: two mappings of the same memory. */
async function open(t: TestContext, settings: LinkSettings = {}): Promise<OpenLink> {
  const failures: PipeloraError[] = [];
  const window = settings.windowBytes === undefined ? {} : { windowBytes: settings.windowBytes };
  const sender = new ShmSender(
    { ends, timeoutMs: settings.timeoutMs ?? 20_000, ...window, onFailed: (error) => failures.push(error) },
    addon,
  );
  const server = await listen("127.0.0.1:0", NO_TRUST, refused, (grpc) => serveSenders(grpc, () => sender));
  const { mailbox, receiver, take } = receiveFrom(server.port, settings, failures);
  t.after(() => {
    receiver.close();
    sender.close();
    server.close();
  });
  return { sender, mailbox, take, failures };
}

linkSuite("shm", open);

test("a sender that is killed fails what waits for it, by name; nothing stays in /dev/shm", async (t) => {
  const before = readdirSync("/dev/shm");
  const peer = fork(join(import.meta.dirname, "shm-peer.ts"), { execArgv: ["--import", "tsx"] });
  t.after(() => peer.kill("SIGKILL"));
  const [port] = (await once(peer, "message")) as [number];
  const failures: PipeloraError[] = [];
  const { receiver, take } = receiveFrom(port, {}, failures);
  t.after(() => receiver.close());
  const came = await take("first");
  const waiting = take("second");
  waiting.catch(() => {});
  peer.kill("SIGKILL");
  const started = performance.now();
  await assert.rejects(waiting, {
    code: "PL_LINK_FAILED",
    message: new RegExp(`from rank 0 to rank 1 \\(shm\\) broke: process ${peer.pid} at the other end has ended`),
  });
  assert.ok(performance.now() - started < 3_000);
  assert.equal(Buffer.compare(came.pieces[0]!, pattern(1 << 20, 1)), 0, "what came stays readable");
  came.release();
  assert.deepEqual(readdirSync("/dev/shm"), before);
});

test("a tensor larger than the shared memory is refused with the way out", async (t) => {
  const { sender } = await open(t);
  const huge = { shape: [1], dtype: "float32" as const, byteLength: 600 << 20, copyTo: async () => assert.fail() };
  await assert.rejects(sender.send("x", huge), { code: "PL_LINK_FAILED", hint: /--link grpc/ });
});

test("memory of another process that can't be mapped is a coded error with the way out", async (t) => {
  const failures: PipeloraError[] = [];
  class Elsewhere extends ShmSender {
    override get address() {
      return { pid: process.pid, fd: 0, token: "1" };
    }
  }
  const sender = new Elsewhere({ ends, timeoutMs: 5_000, onFailed: () => {} }, addon);
  const server = await listen("127.0.0.1:0", NO_TRUST, refused, (grpc) => serveSenders(grpc, () => sender));
  const { receiver, take } = receiveFrom(server.port, {}, failures);
  t.after(() => {
    receiver.close();
    sender.close();
    server.close();
  });
  await assert.rejects(take("x"), { code: "PL_LINK_FAILED", message: /rank 0 to rank 1/, hint: /--link grpc/ });
});

test("a sender that has room for nothing more does not lose what came before", async (t) => {
  const { sender, take } = await open(t, { windowBytes: 1 });
  const sending = (async () => {
    for (let i = 0; i < 20; i++) await sendWhenRoom(sender, `${i}`, tensor(pattern(4000, i)));
  })();
  for (let i = 0; i < 20; i++) {
    const came = await take(`${i}`);
    assert.equal(Buffer.compare(came.pieces[0]!, pattern(4000, i)), 0);
    came.release();
  }
  await sending;
});
