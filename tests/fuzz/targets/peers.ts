import { readFileSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { gzipSync } from "node:zlib";
import { credentials, Metadata, makeGenericClientConstructor, type Server } from "@grpc/grpc-js";
import { service as healthService } from "grpc-health-check";
import { createLogger } from "../../../src/common/log.ts";
import { Cluster } from "../../../src/coordinator/cluster/cluster.ts";
import { serveSenders } from "../../../src/links/service.ts";
import { Health } from "../../../src/rpc/health.ts";
import { encodeReply, PROTOCOL_VERSION } from "../../../src/rpc/protocol.ts";
import { listen } from "../../../src/rpc/server.ts";
import { rawCall } from "../../support/processes/raw-call.ts";
import { mutateBytes } from "../mutate.ts";
import { kindsOf, strangeMessage } from "../proto-messages.ts";
import type { Random } from "../random.ts";
import type { FuzzTarget } from "../target.ts";

const BUILD = "this build";
const TOKEN = "a secret";
/** Far above what an answer takes on a busy machine, far below a heartbeat's patience. */
const ANSWER_MS = 5_000;

const log = createLogger({ format: "json", level: "silent" });
const openCluster = (token: string | null) =>
  Cluster.open({
    listen: "127.0.0.1:0",
    nnodes: 1,
    nodes: null,
    minWorkers: null,
    trust: { tls: null, token: () => token },
    tlsFlags: [],
    healthListen: null,
    joinTimeoutS: 60,
    localDevices: [],
    localThreads: 1,
    localPin: null,
    build: BUILD,
    logFormat: "json",
    logLevel: "silent",
    log,
  });

const started = new Map<string, Promise<number>>();
/** Servers live as long as their process: what one input leaves behind meets the next. */
function portOf(which: Attack["server"]): Promise<number> {
  const open = async () => {
    if (which === "tensors") {
      const trust = { tls: null, token: () => null };
      const nobody = () => {};
      const register = (grpc: Server) => {
        serveSenders(grpc, () => null);
        new Health().serve(grpc);
      };
      return (await listen("127.0.0.1:0", trust, nobody, register)).port;
    }
    return (await openCluster(which === "guarded" ? TOKEN : null)).port;
  };
  if (!started.has(which)) started.set(which, open());
  return started.get(which)!;
}

interface Attack {
  /** A coordinator with a join token, one without, or a worker's tensor service. */
  readonly server: "guarded" | "open" | "tensors";
  readonly method: string;
  readonly token: string | null;
  readonly encoding: string | null;
  /** Bytes to a socket instead of a call. */
  readonly raw: boolean;
  readonly repeats: number;
}

/** The server lives, and answers a member at once. */
async function answers(port: number, token: string | null): Promise<void> {
  const Client = makeGenericClientConstructor(healthService, "Health");
  const client = new Client(`127.0.0.1:${port}`, credentials.createInsecure(), { "grpc.use_local_subchannel_pool": 1 });
  const metadata = new Metadata();
  if (token !== null) metadata.set("authorization", `Bearer ${token}`);
  const check = (client as unknown as Record<string, (...args: unknown[]) => void>)["check"]!.bind(client);
  try {
    await new Promise<void>((resolve, reject) =>
      check({ service: "liveness" }, metadata, { deadline: Date.now() + ANSWER_MS }, (error: Error | null) =>
        error === null ? resolve() : reject(new Error(`the server gave no answer: ${error.message}`)),
      ),
    );
  } finally {
    client.close();
  }
}

function attackBytes(random: Random): Buffer {
  const up = kindsOf("FromWorker");
  const message = encodeReply(strangeMessage(random, "FromWorker", random.pick(up)) as never);
  return random.pick([
    () => message,
    () => mutateBytes(random, message),
    () => gzipSync(Buffer.alloc(random.pick([1 << 10, 64 << 20]))),
    () => Buffer.alloc(random.pick([0, 5, 1 << 16, 4 << 20])),
    () => random.bytes(300),
  ])();
}

const stranger: FuzzTarget = {
  name: "peers-stranger",
  make(random, dir) {
    const server = random.pick(["guarded", "open", "tensors"] as const);
    const methods = ["Coordination/Session", "Tensors/Pull", "Tensors/Share", "Nothing/AtAll"];
    const attack: Attack = {
      server,
      method: `/pipelora.v1.${random.pick(methods)}`,
      token: random.pick([null, "", "a guess", "x".repeat(5_000)]),
      encoding: random.pick([null, null, "gzip", "deflate", "br"]),
      raw: random.chance(0.3),
      repeats: random.pick([1, 3, 50]),
    };
    writeFileSync(join(dir, "attack.json"), JSON.stringify(attack));
    writeFileSync(join(dir, "bytes.bin"), attackBytes(random));
  },
  async check(dir) {
    const attack = JSON.parse(readFileSync(join(dir, "attack.json"), "utf8")) as Attack;
    const payload = readFileSync(join(dir, "bytes.bin"));
    const port = await portOf(attack.server);
    if (attack.raw) {
      const preface = Buffer.from(
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\u0000\u0000\u0000\u0004\u0000\u0000\u0000\u0000\u0000",
      );
      const socket = connect(port, "127.0.0.1");
      socket.on("error", () => {});
      // One buffer for all: what the socket has not taken yet is the attacker's memory, and counts as the server's here.
      const bytes = Buffer.concat([preface, payload]);
      for (let count = 0; count < attack.repeats; count++) socket.write(bytes);
      await sleep(5);
      await answers(port, attack.server === "guarded" ? TOKEN : null);
      socket.destroy();
      return;
    }
    const headers = {
      ...(attack.token === null ? {} : { authorization: `Bearer ${attack.token}` }),
      ...(attack.encoding === null ? {} : { "grpc-encoding": attack.encoding }),
    };
    const call = rawCall(port, attack.method, headers);
    for (let count = 0; count < attack.repeats; count++) call.send(payload);
    await sleep(5);
    await answers(port, attack.server === "guarded" ? TOKEN : null);
    call.close();
  },
};

/** A worker that has joined, and says what it likes. */
const member: FuzzTarget = {
  name: "peers-member",
  make(random, dir) {
    const messages = Array.from({ length: random.between(1, 6) }, () => {
      const message = strangeMessage(random, "FromWorker", random.pick(kindsOf("FromWorker")));
      const replyTo = random.pick([0, 1, 2, 3, 2 ** 53 - 1]);
      const whole = encodeReply({ ...message, replyTo } as never);
      return (random.chance(0.2) ? mutateBytes(random, whole) : whole).toString("base64");
    });
    const hello = random.chance(0.3) ? strangeMessage(random, "Hello") : {};
    writeFileSync(join(dir, "messages.json"), JSON.stringify({ hello, messages }));
  },
  async check(dir) {
    const said = JSON.parse(readFileSync(join(dir, "messages.json"), "utf8")) as { hello: object; messages: string[] };
    const port = await portOf("guarded");
    const call = rawCall(port, "/pipelora.v1.Coordination/Session", { authorization: `Bearer ${TOKEN}` });
    const own = { protocol: PROTOCOL_VERSION, build: BUILD, node: dir, instance: dir, nodeDevices: 1, device: "cpu" };
    call.send(encodeReply({ replyTo: 0, hello: { ...own, ...said.hello } } as never));
    for (const message of said.messages) call.send(Buffer.from(message, "base64"));
    await sleep(5);
    await answers(port, TOKEN);
    call.close();
  },
};

export const PEERS: readonly FuzzTarget[] = [stranger, member];
