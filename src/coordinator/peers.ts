import { type LinkOption, linkKind } from "../plan/link-kinds.ts";
import type { Peer } from "../rpc/generated/pipelora/v1/Peer.ts";
import type { WorkerConnection } from "../rpc/worker-connection.ts";
import { joinedDevices } from "./planning.ts";

/** All ranks as that one reaches them. */
export function peersOf(rank: number, members: readonly WorkerConnection[], option: LinkOption): Peer[] {
  const devices = joinedDevices(members);
  return members.map(({ hello }, other) => ({
    rank: other,
    address: hello.linkAddress,
    link: linkKind(option, devices[rank]!, devices[other]!),
  }));
}
