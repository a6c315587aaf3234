import { PipeloraError } from "../../common/errors.ts";
import type { LinkSettings } from "../../plan/nccl.ts";
import type { LinkProbed__Output } from "../../rpc/generated/pipelora/v1/LinkProbed.ts";
import type { WorkerConnection } from "../../rpc/worker-connection.ts";
import { type PeerLists, peerLists } from "./peers.ts";

export interface ProbeSize {
  /** Bytes of a message, and how many are sent. */
  readonly bytes: number;
  readonly count: number;
  /** Seconds after which a message counts as lost. */
  readonly linkTimeoutS: number;
}

/**
 * Measures the link from each rank to the next, every second one at a time: no rank is in two at once. `use` gets what sender and
 * receiver found, or the error of a link that does not work, and the link's kind.
 */
export async function probeNeighbours<T>(
  members: readonly WorkerConnection[],
  settings: LinkSettings,
  size: ProbeSize,
  use: (from: number, found: { sender: LinkProbed__Output; receiver: LinkProbed__Output } | Error, kind: string) => T,
): Promise<T[]> {
  const { peers } = await neighbourLists(members, settings);
  const probe = async (from: number): Promise<T> => {
    const request = { from, to: from + 1, ...size };
    const kind = peers[from]![from + 1]!.link!;
    const ends = [from, from + 1].map((rank) =>
      members[rank]!.request({ probeLink: { ...request, peers: peers[rank]! } }),
    );
    try {
      const [sender, receiver] = await Promise.all(ends);
      return use(from, { sender: sender!.linkProbed!, receiver: receiver!.linkProbed! }, kind);
    } catch (error) {
      // A worker that is gone is no broken link: another try, without it, may do.
      if (isLoss(error)) throw error;
      const settled = await Promise.allSettled(ends);
      const lost = settled.find((end) => end.status === "rejected" && isLoss(end.reason));
      if (lost?.status === "rejected") throw lost.reason;
      return use(from, error as Error, kind);
    }
  };
  const results: T[] = [];
  for (const first of [0, 1]) {
    const froms = members.map((_, rank) => rank).filter((rank) => rank % 2 === first && rank + 1 < members.length);
    const found = await Promise.all(froms.map(probe));
    for (const [index, from] of froms.entries()) results[from] = found[index]!;
  }
  return results;
}

function isLoss(error: unknown): boolean {
  return error instanceof PipeloraError && error.code === "PL_WORKER_LOST";
}

/** Ranks open the links of probes once, however often they are probed; so their lists are made once. */
const lists = new WeakMap<readonly WorkerConnection[], Promise<PeerLists>>();

function neighbourLists(members: readonly WorkerConnection[], settings: LinkSettings): Promise<PeerLists> {
  const ranks = members.map((_, rank) => rank);
  const made =
    lists.get(members) ??
    peerLists(
      members,
      settings,
      ranks.map((rank) => ({ ranks: [rank] })),
      [ranks],
    );
  lists.set(members, made);
  return made;
}
