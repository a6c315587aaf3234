import type { LinkProbed } from "../rpc/generated/pipelora/v1/LinkProbed.ts";
import type { ProbeLink__Output } from "../rpc/generated/pipelora/v1/ProbeLink.ts";
import type { RankLinks } from "./links.ts";
import { processorSeconds } from "./node/processor-time.ts";
import { anyContent } from "./tensors.ts";

const PINGS = 8;
/** A few bytes rather than none, so that a ping takes the same way as a tensor. */
const PING = anyContent(4);

/** This rank's part in measuring a link in one direction: bandwidth from messages sent back to back, latency from pings. */
export async function probeLink(
  links: RankLinks,
  { from, to, bytes, count }: ProbeLink__Output,
  rank: number,
  name: string,
): Promise<LinkProbed> {
  const key = (kind: string, index: number) => `${name}/${kind}/${index}`;
  const sends = rank === from;
  const peer = sends ? to : from;
  const message = anyContent(bytes);
  const ping = async (index: number) => {
    if (sends) await links.sendWhole(peer, key("ping", index), PING);
    await links.receiveBytes(peer, key(sends ? "pong" : "ping", index));
    if (!sends) await links.sendWhole(peer, key("pong", index), PING);
  };
  // The first ping opens the connections.
  await ping(0);
  const pinged = performance.now();
  for (let index = 1; index <= PINGS; index++) await ping(index);
  const latency = (performance.now() - pinged) / 1000 / PINGS / 2;

  const before = processorSeconds();
  const began = performance.now();
  if (sends) {
    await Promise.all(
      Array.from({ length: count }, (_, index) => links.sendWhole(peer, key("message", index), message)),
    );
    await links.receiveBytes(peer, key("all", 0));
  } else {
    for (let index = 0; index < count; index++) await links.receiveBytes(peer, key("message", index));
    await links.sendWhole(peer, key("all", 0), PING);
  }
  const seconds = (performance.now() - began) / 1000;
  return { secondsPerMessage: seconds / count, latency, compute: (processorSeconds() - before) / count };
}
