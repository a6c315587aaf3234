import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import { createLogger } from "../../../src/common/log.ts";
import { loadEngine } from "../../../src/engine/index.ts";
import { serveSenders } from "../../../src/links/service.ts";
import type { FromWorker } from "../../../src/rpc/generated/pipelora/v1/FromWorker.ts";
import type { ToWorker } from "../../../src/rpc/generated/pipelora/v1/ToWorker.ts";
import { decodeRequest, encodeRequest } from "../../../src/rpc/protocol.ts";
import { listen } from "../../../src/rpc/server.ts";
import { NO_TRUST } from "../../../src/rpc/trust.ts";
import { RankLinks } from "../../../src/worker/links.ts";
import { OutputFolders } from "../../../src/worker/node/node-files.ts";
import { Rank } from "../../../src/worker/rank.ts";
import { fromHost } from "../../../src/worker/tensors.ts";
import { HeldLayers } from "../../../src/worker/weights/held-layers.ts";

interface Member {
  readonly links: RankLinks;
  readonly address: string;
  /** The reply to a request of the coordinator's. */
  ask(message: ToWorker): Promise<FromWorker>;
}

/** A rank as its worker makes it, spoken to without a coordinator between. */
async function member(t: TestContext, number: number): Promise<Member> {
  const links = new RankLinks({ addon: loadEngine(), device: "cpu", trust: NO_TRUST, note: () => {} });
  const server = await listen(
    "127.0.0.1:0",
    NO_TRUST,
    () => {},
    (grpc) => serveSenders(grpc, (open) => links.senderFor(open)),
  );
  const waiting = new Map<number, (reply: FromWorker) => void>();
  const rank = new Rank({
    device: "cpu",
    links,
    outputs: new OutputFolders(null),
    folders: { modelDir: null, outputDir: null },
    log: createLogger({ level: "silent", format: "json" }),
    held: new HeldLayers(),
    send: (message) => waiting.get(message.replyTo as number)?.(message),
    onWelcome: () => {},
    onCollected: () => {},
    onPrepared: () => {},
    onShutdown: () => {},
    signal: new AbortController().signal,
  });
  t.after(() => {
    links.close();
    server.close();
  });
  const tell = (message: ToWorker) => rank.handle(decodeRequest(encodeRequest(message)));
  tell({ request: 0, welcome: { session: "run", rank: number, worldSize: 2, heartbeatMs: 1000 } });
  let requests = 0;
  const ask = (message: ToWorker) =>
    new Promise<FromWorker>((resolve) => {
      const request = ++requests;
      waiting.set(request, resolve);
      tell({ ...message, request });
    });
  return { links, address: `127.0.0.1:${server.port}`, ask };
}

for (const link of ["grpc", "shm"]) {
  test(`${link}: a rank that is prepared before its peer waits for the run's link and does not take that of the probe`, {
    timeout: 20_000,
  }, async (t) => {
    const members = [await member(t, 0), await member(t, 1)];
    const peers = members.map(({ address }, rank) => ({ rank, address, link, ncclTo: "", ncclFrom: "" }));
    const common = { peers, linkTimeoutS: 10 };
    const probeLink = { from: 0, to: 1, bytes: 1000, count: 9, ...common };
    for (const reply of await Promise.all(members.map(({ ask }) => ask({ probeLink })))) {
      assert.ok(reply.linkProbed, JSON.stringify(reply.failure));
    }
    // Links are made first; what is read then is none of this test's.
    const prepare = { modelDir: "/no/such/model", ...common };
    const prepared = async (rank: number) => {
      const { failure } = await members[rank]!.ask({ prepare });
      assert.equal(failure?.code, "PL_MODEL_NOT_FOUND");
    };
    await prepared(1);
    const early = members[1]!.links.receiveBytes(0, "first");
    early.catch(() => {});
    await new Promise((resolve) => setTimeout(resolve, 300));
    await prepared(0);
    await members[0]!.links.sendWhole(1, "first", fromHost(Buffer.from("of the run"), [10], "int8"));
    assert.equal((await early).toString(), "of the run");
  });
}
