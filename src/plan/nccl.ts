import type { Config } from "../config/options.ts";
import type { Device } from "./devices.ts";

/** --link (auto: the best link that both ends of a pair have), and --insecure: whether traffic between hosts may be in plaintext. */
export type LinkSettings = Pick<Config, "link" | "insecure">;

/** What decides which links a device can have. */
export type LinkEnd = Pick<Device, "host" | "node" | "kind" | "pciBusId" | "nccl">;

/** Whether two processes can share memory. Devices without hardware can if they are on one node. */
export function onOneHost(a: LinkEnd, b: LinkEnd): boolean {
  const [first, second] = [a, b].map(({ host, node }) => host ?? node);
  return first === second;
}

/**
 * Why NCCL can't carry a pair's tensors, or must not under auto; null: it can. NCCL does not encrypt: under auto it stays within one host, so
 * nobody gets plaintext on the network without asking for it.
 */
export function ncclProblem({ link, insecure }: LinkSettings, a: LinkEnd, b: LinkEnd): string | null {
  if (link !== "auto" && link !== "nccl") return `--link ${link} asks for another`;
  if (link === "auto") {
    // Unknown for devices without hardware. On CPUs a library that only moves host memory is used only when asked for.
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
