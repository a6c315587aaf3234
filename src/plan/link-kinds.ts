import { PipeloraError } from "../common/errors.ts";
import type { Config } from "../config/options.ts";
import type { Device } from "./devices.ts";
import type { Plan } from "./plan.ts";

/** --link; auto: each pair by the best link that both have. */
export type LinkOption = Config["link"];
export type LinkKind = Exclude<LinkOption, "auto">;

type Host = Pick<Device, "host" | "node">;

export interface PlannedLink {
  /** Ascending. */
  readonly ranks: readonly [number, number];
  readonly kind: LinkKind;
}

/** The link of a pair. Shared memory where both are processes of one host, unless --link says otherwise. */
export function linkKind(option: LinkOption, a: Host, b: Host): LinkKind {
  return option !== "grpc" && sharesMemory(a, b) ? "shm" : "grpc";
}

/**
 * Links of all pairs that exchange tensors: neighbours in each pipeline, its ends (the head chooses a token, the embedding
 * takes it), and ranks at one place of several replicas. Errors: PL_CONFIG_INVALID for a pair that can't have what --link asks for.
 */
export function plannedLinks(option: LinkOption, devices: readonly Device[], plan: Plan): PlannedLink[] {
  const pairs = new Map<string, readonly [number, number]>();
  const add = (a: number, b: number) => {
    if (a !== b) pairs.set(`${Math.min(a, b)} ${Math.max(a, b)}`, [Math.min(a, b), Math.max(a, b)]);
  };
  const { segments, replicas } = plan;
  for (const ranks of replicas) {
    segments.forEach(({ rank }, index) => {
      add(ranks[rank]!, ranks[segments[(index + 1) % segments.length]!.rank]!);
    });
    ranks.forEach((rank, place) => {
      for (const other of replicas) add(rank, other[place]!);
    });
  }
  return [...pairs.values()]
    .sort(([a, b], [c, d]) => a - c || b - d)
    .map((ranks) => {
      const [a, b] = ranks.map((rank) => devices[rank]!) as [Device, Device];
      if (option === "shm" && !sharesMemory(a, b)) {
        const nodes = `${a.node} and ${b.node}`;
        throw new PipeloraError(
          "PL_CONFIG_INVALID",
          `--link shm: ranks ${ranks.join(" and ")} share no memory (nodes ${nodes}); between them there is grpc`,
          { hint: "Use --link auto, which takes shared memory wherever it can be had." },
        );
      }
      return { ranks, kind: linkKind(option, a, b) };
    });
}

/** "0–1 shm, 1–2 grpc"; counts where there are many. */
export function formatLinks(links: readonly PlannedLink[]): string {
  if (links.length <= 16) return links.map(({ ranks, kind }) => `${ranks.join("–")} ${kind}`).join(", ");
  const kinds = new Set(links.map(({ kind }) => kind));
  return [...kinds].map((kind) => `${links.filter((link) => link.kind === kind).length} pairs ${kind}`).join(", ");
}

function sharesMemory(a: Host, b: Host): boolean {
  const [first, second] = [a, b].map(({ host, node }) => host ?? node);
  return first === second;
}
