import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../src/common/root.ts";
import type { Introduction, LinkOrder } from "./device-link-peer.ts";

/** GB a second from one device's memory to another's, tensors of one shape (bfloat16) back to back, each end's own count of them. */
export async function deviceLinkRate(
  devices: readonly [string, string],
  link: string,
  shape: readonly [number, number],
  count: number,
): Promise<number> {
  const peers = devices.map(() =>
    fork(join(PACKAGE_ROOT, "bench", "device-link-peer.ts"), { execArgv: [...process.execArgv] }),
  );
  try {
    const introductions = peers.map(answer<Introduction>);
    for (const [rank, peer] of peers.entries()) {
      peer.send({ device: devices[rank]!, rank, link, shape, count } satisfies LinkOrder);
    }
    const [first, second] = (await Promise.all(introductions)) as [Introduction, Introduction];
    const rates = peers.map(answer<{ GB_per_s: number }>);
    peers[0]!.send(second);
    peers[1]!.send(first);
    // The receiver's: it ends when the last tensor is in its device's memory.
    return (await Promise.all(rates))[1]!.GB_per_s;
  } finally {
    for (const peer of peers) if (peer.connected) peer.disconnect();
  }
}

/** What a process says next. Rejects if it ends instead. */
async function answer<T>(peer: ChildProcess): Promise<T> {
  const ended = once(peer, "exit").then(([code, signal]) => {
    throw new Error(`a process of the benchmark ended with ${code ?? signal}`);
  });
  const [said] = (await Promise.race([once(peer, "message"), ended])) as [T];
  ended.catch(() => {});
  return said;
}
