import { PipeloraError } from "../../common/errors.ts";
import { hostLinkKind, linkedPairs, linkKind } from "../../plan/link-kinds.ts";
import { groupByNccl, type LinkSettings } from "../../plan/nccl.ts";
import type { Peer } from "../../rpc/generated/pipelora/v1/Peer.ts";
import type { WorkerConnection } from "../../rpc/worker-connection.ts";
import { joinedDevices } from "./joined-devices.ts";

export interface PeerLists {
  /** By rank: all ranks as that one reaches them. */
  readonly peers: readonly Peer[][];
  /** By rank: the unique id of its replica group's communicator; empty: none. */
  readonly replicaNccl: readonly Uint8Array[];
}

/**
 * How the ranks of a run reach each other. NCCL's unique ids are made by a member of each communicator: by the rank that sends,
 * and by a replica group's first.
 */
export async function peerLists(
  members: readonly WorkerConnection[],
  settings: LinkSettings,
  segments: readonly { readonly ranks: readonly number[] }[],
  replicas: readonly (readonly number[])[],
): Promise<PeerLists> {
  const devices = joinedDevices(members);
  const edges = linkedPairs(segments, replicas)
    .filter(({ ranks: [a, b], use }) => use === "tensors" && linkKind(settings, devices[a]!, devices[b]!) === "nccl")
    .flatMap(({ ranks: [a, b] }) => [[a, b] as const, [b, a] as const]);
  const groups = (replicas[0] ?? [])
    .map((_, place) => replicas.map((own) => own[place]!))
    .filter((ranks) => groupByNccl(settings, ranks, devices));
  const owners = [...edges.map(([from]) => from), ...groups.map((ranks) => ranks[0]!)];
  const ids = await makeIds(members, owners);
  const idOf = new Map(edges.map(([from, to], index) => [`${from} ${to}`, ids[index]!]));
  const none = new Uint8Array(0);
  const peers = members.map((_, rank) =>
    members.map(({ hello }, other): Peer => {
      const ncclTo = idOf.get(`${rank} ${other}`) ?? none;
      const ncclFrom = idOf.get(`${other} ${rank}`) ?? none;
      const link = ncclTo.length > 0 ? "nccl" : hostLinkKind(settings, devices[rank]!, devices[other]!);
      return {
        rank: other,
        address: hello.linkAddress,
        link,
        ncclTo: Buffer.from(ncclTo),
        ncclFrom: Buffer.from(ncclFrom),
      };
    }),
  );
  const replicaNccl = members.map((_, rank) => {
    const group = groups.findIndex((ranks) => ranks.includes(rank));
    return group < 0 ? none : ids[edges.length + group]!;
  });
  return { peers, replicaNccl };
}

/** One id for each entry, made by the rank that it names. */
async function makeIds(members: readonly WorkerConnection[], owners: readonly number[]): Promise<Uint8Array[]> {
  const made = new Map<number, Uint8Array[]>();
  await Promise.all(
    [...new Set(owners)].map(async (rank) => {
      const count = owners.filter((owner) => owner === rank).length;
      const { ids } = (await members[rank]!.request({ makeNcclIds: { count } })).ncclIds!;
      if (ids.length !== count || ids.some((id) => id.length !== 128)) {
        throw new PipeloraError("PL_PROTOCOL_MISMATCH", `rank ${rank}: expected ${count} NCCL ids, got ${ids.length}`);
      }
      made.set(rank, [...ids]);
    }),
  );
  return owners.map((rank) => made.get(rank)!.shift()!);
}
