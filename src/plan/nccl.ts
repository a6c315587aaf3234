import type { Config } from "../config/options.ts";
import type { Device } from "./devices.ts";

/** --link (auto: each pair by the best link that both have), and whether traffic between hosts may be in the clear. */
export type LinkSettings = Pick<Config, "link" | "insecure">;

/** What a device says of the links it can have. */
export type LinkEnd = Pick<Device, "host" | "node" | "kind" | "pciBusId" | "nccl">;

/** Whether two processes can map each other's memory; on paper: by node. */
export function onOneHost(a: LinkEnd, b: LinkEnd): boolean {
  const [first, second] = [a, b].map(({ host, node }) => host ?? node);
  return first === second;
}

/**
 * Why NCCL can't, or under auto is not to, carry a pair's tensors; null: it can. Traffic between hosts is not encrypted, and auto
 * stays within one; so that nobody gets plaintext unasked.
 */
export function ncclProblem({ link, insecure }: LinkSettings, a: LinkEnd, b: LinkEnd): string | null {
  if (link !== "auto" && link !== "nccl") return `--link ${link} asks for another`;
  if (link === "auto") {
    // What a device on paper has is not known, and a library that moves host memory is for whoever asks for it.
    if (a.nccl === undefined || b.nccl === undefined) return "it is not known whether they have it";
    if (a.kind === "cpu" || b.kind === "cpu") return "one of them computes on its CPU";
    if (!onOneHost(a, b)) return "they are on two hosts";
  }
  for (const { nccl, node, kind } of [a, b]) {
    if (nccl?.version === null) return `a ${kind} device of node ${node} can't: ${nccl.reason}`;
  }
  if (a.kind !== b.kind) return "one of them computes on its CPU";
  const versions = [a, b].map(({ nccl }) => nccl?.version);
  if (a.nccl !== undefined && b.nccl !== undefined && versions[0] !== versions[1]) {
    return `they have different versions of it (${a.node} ${versions[0]}, ${b.node} ${versions[1]})`;
  }
  if (!onOneHost(a, b)) {
    return insecure ? null : "its traffic between two hosts is not encrypted, which only --insecure allows";
  }
  if (a.pciBusId !== undefined && a.pciBusId === b.pciBusId) return `they share one GPU (${a.pciBusId})`;
  return null;
}

/** Whether ranks that add up their gradients do so in one communicator. */
export function groupByNccl(settings: LinkSettings, ranks: readonly number[], devices: readonly LinkEnd[]): boolean {
  if (ranks.length < 2) return false;
  return ranks.every((rank, index) =>
    ranks.slice(index + 1).every((other) => ncclProblem(settings, devices[rank]!, devices[other]!) === null),
  );
}
