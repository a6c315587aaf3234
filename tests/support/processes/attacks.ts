import { connect, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { deflateSync, gzipSync } from "node:zlib";
import { encodeReply, PROTOCOL_VERSION } from "../../../src/rpc/protocol.ts";
import { rawCall } from "./raw-call.ts";

const SESSION = "/pipelora.v1.Coordination/Session";
const PREFACE = Buffer.from(
  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\u0000\u0000\u0000\u0004\u0000\u0000\u0000\u0000\u0000",
  "latin1",
);
const MIB = 1 << 20;

/** Writes to a socket as fast as it takes it, until it is closed or all is written. */
async function pour(port: number, first: Buffer, bytes = 0, keepMs = 0): Promise<number> {
  const socket: Socket = connect(port, "127.0.0.1");
  let open = true;
  socket.on("error", () => {});
  socket.on("close", () => {
    open = false;
  });
  socket.resume();
  socket.write(first);
  const piece = Buffer.alloc(MIB);
  let sent = 0;
  for (; open && sent < bytes; sent += piece.length) {
    if (!socket.write(piece)) await Promise.race([new Promise((done) => socket.once("drain", done)), sleep(2_000)]);
    if (socket.writableLength > 8 * MIB) break;
  }
  await sleep(keepMs);
  socket.destroy();
  return sent;
}

async function session(
  port: number,
  messages: readonly Buffer[],
  headers: Record<string, string> = {},
  path = SESSION,
) {
  const call = rawCall(port, path, headers);
  for (const message of messages) call.send(message);
  await Promise.race([call.ended, sleep(1_000)]);
  call.close();
}

const hello = (more: object) => encodeReply({ replyTo: 0, hello: { protocol: PROTOCOL_VERSION, ...more } } as never);

/** What whoever reaches a coordinator's port can do to it without a token. Each ends by itself. */
export const ATTACKS: Readonly<Record<string, (port: number) => Promise<unknown>>> = {
  "connections that say nothing": (port) =>
    Promise.all(Array.from({ length: 20 }, () => pour(port, Buffer.alloc(0), 0, 3_000))),
  noise: (port) => pour(port, Buffer.from("noise, and more noise\r\n\r\n")),
  "a TLS handshake": (port) => pour(port, Buffer.from("16030100c8010000c40303", "hex"), 0, 500),
  "HTTP/1": (port) => pour(port, Buffer.from("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), 0, 500),
  "HTTP/2's greeting alone": (port) => pour(port, PREFACE, 0, 3_000),
  "300 MB behind the greeting": (port) => pour(port, PREFACE, 300 * MIB),
  "300 MB of nothing": (port) => pour(port, Buffer.alloc(1), 300 * MIB),
  "a frame of the largest size": (port) =>
    pour(port, Buffer.concat([PREFACE, Buffer.from("ffffff000000000001", "hex")]), 64 * MIB),
  "a gzip message of 1.4 MB that stands for 1.4 GB": (port) =>
    session(port, [gzipSync(Buffer.alloc(1400 * MIB))], { "grpc-encoding": "gzip" }),
  "a deflated message": (port) => session(port, [deflateSync(Buffer.alloc(200 * MIB))], { "grpc-encoding": "deflate" }),
  "a message of 300 MB": (port) => session(port, [Buffer.alloc(300 * MIB)]),
  "300 messages of 1 MB": (port) => session(port, Array<Buffer>(300).fill(Buffer.alloc(MIB))),
  "a session without hello": (port) => session(port, []),
  "a message without checksum": (port) => session(port, [Buffer.from([8, 0, 26, 0])]),
  "a hello of another protocol": (port) => session(port, [hello({ protocol: 1, node: "x" })]),
  "a hello of another build": (port) => session(port, [hello({ build: "x", node: "n1" })]),
  "two hellos": (port) => session(port, [hello({ node: "x" }), hello({ node: "y" })]),
  "replies that nobody asked for": (port) =>
    session(port, Array<Buffer>(2_000).fill(encodeReply({ replyTo: 7, done: {} } as never))),
  "1,000 connections in a row": async (port) => {
    for (let batch = 0; batch < 20; batch++) {
      await Promise.all(Array.from({ length: 50 }, () => pour(port, PREFACE)));
    }
  },
  "methods that do not exist": (port) =>
    Promise.all(Array.from({ length: 50 }, () => session(port, [Buffer.alloc(9)], {}, "/pipelora.v1.Nothing/AtAll"))),
  "a header of 64 kB": (port) => session(port, [], { authorization: "x".repeat(65_536) }),
};
