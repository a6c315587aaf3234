// The other process of bench/links.ts: rank 0, which sends what it is told to.

import { once } from "node:events";
import { createServer } from "node:net";
import { loadEngine } from "../src/engine/index.ts";
import { serveSenders } from "../src/links/service.ts";
import type { Peer__Output } from "../src/rpc/generated/pipelora/v1/Peer.ts";
import { type ListeningServer, listen } from "../src/rpc/server.ts";
import { NO_TRUST } from "../src/rpc/trust.ts";
import { RankLinks } from "../src/worker/links.ts";
import { expectLargeBuffers } from "../src/worker/node/host-memory.ts";
import { fromHost } from "../src/worker/tensors.ts";

export const SESSION = "bench";

export type Order =
  | { readonly do: "join"; readonly link: string; readonly address: string }
  | { readonly do: "send"; readonly name: string; readonly count: number; readonly bytes: number }
  | { readonly do: "echo"; readonly name: string; readonly count: number; readonly bytes: number }
  | { readonly do: "tcp"; readonly count: number; readonly bytes: number };

export interface Report {
  readonly port?: number;
  /** Largest resident memory during the order, above what it was before. */
  readonly grownBytes?: number;
}

if (process.send !== undefined && process.argv[1] === import.meta.filename) await serve();

export function peer(rank: number, address: string, link: string): Peer__Output {
  return { rank, address, link, ncclTo: Buffer.alloc(0), ncclFrom: Buffer.alloc(0) };
}

/** One process's links as a worker has them, and the server of their sending ends. */
export async function openLinks(): Promise<{ links: RankLinks; server: ListeningServer }> {
  const addon = loadEngine();
  expectLargeBuffers(addon);
  const links = new RankLinks({
    addon,
    device: "cpu",
    trust: NO_TRUST,
    note: (text) => process.stderr.write(`${text}\n`),
  });
  const server = await listen(
    "127.0.0.1:0",
    NO_TRUST,
    () => {},
    (grpc) => serveSenders(grpc, (open) => links.senderFor(open)),
  );
  return { links, server };
}

async function serve(): Promise<void> {
  const { links, server } = await openLinks();
  const report = (what: Report) => process.send!(what);
  process.on("disconnect", () => process.exit());
  process.on("message", async (order: Order) => {
    if (order.do === "join") {
      links.join({ session: SESSION, rank: 0 }, [peer(1, order.address, order.link)], 60_000);
      return report({ port: server.port });
    }
    const bytes = new Uint8Array(order.bytes).fill(7);
    const tensor = fromHost(bytes, [order.bytes / 4], "float32");
    if (order.do === "tcp") return tcp(bytes, order.count, report);
    const before = process.memoryUsage.rss();
    let most = before;
    for (let i = 0; i < order.count; i++) {
      if (order.do === "echo") (await links.receive(1, `${order.name}/${i}`)).release();
      const { sent } = await links.send(1, `${order.name}/${i}`, tensor);
      await sent;
      if (order.do === "send") most = Math.max(most, process.memoryUsage.rss());
    }
    report({ grownBytes: most - before });
  });
  report({ port: server.port });
}

async function tcp(bytes: Uint8Array, count: number, report: (what: Report) => void): Promise<void> {
  const server = createServer(async (socket) => {
    socket.on("error", () => {});
    for (let i = 0; i < count; i++) if (!socket.write(bytes)) await once(socket, "drain");
    socket.end();
    server.close();
  });
  server.listen(0, "127.0.0.1", () => report({ port: (server.address() as { port: number }).port }));
}
