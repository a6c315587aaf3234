import type { LinkProbed } from "../rpc/generated/pipelora/v1/LinkProbed.ts";
import type { ProbeLink__Output } from "../rpc/generated/pipelora/v1/ProbeLink.ts";
import type { RankLinks } from "./links.ts";

const PINGS = 8;
const NOTHING = { shape: [0], dtype: "float32", bytes: new Uint8Array(0) } as const;

/** This rank's part in measuring the link from one rank to another: bandwidth with messages back to back, latency with pings. */
export async function probeLink(
  links: RankLinks,
  { from, to, bytes, count }: ProbeLink__Output,
  rank: number,
  name: string,
): Promise<LinkProbed> {
  const key = (kind: string, index: number) => `${name}/${kind}/${index}`;
  const sends = rank === from;
  const peer = sends ? to : from;
  const message = { shape: [bytes / 4], dtype: "float32", bytes: new Uint8Array(bytes) } as const;
  const ping = async (index: number) => {
    if (sends) await links.send(peer, key("ping", index), NOTHING);
    await links.receive(peer, key(sends ? "pong" : "ping", index));
    if (!sends) await links.send(peer, key("pong", index), NOTHING);
  };
  // The first one opens the connections.
  await ping(0);
  const pinged = performance.now();
  for (let index = 1; index <= PINGS; index++) await ping(index);
  const latency = (performance.now() - pinged) / 1000 / PINGS / 2;

  const before = process.cpuUsage();
  const began = performance.now();
  if (sends) {
    await Promise.all(Array.from({ length: count }, (_, index) => links.send(peer, key("message", index), message)));
    await links.receive(peer, key("all", 0));
  } else {
    for (let index = 0; index < count; index++) await links.receive(peer, key("message", index));
    await links.send(peer, key("all", 0), NOTHING);
  }
  const seconds = (performance.now() - began) / 1000;
  const { user, system } = process.cpuUsage(before);
  return { secondsPerMessage: seconds / count, latency, compute: (user + system) / 1e6 / count };
}
