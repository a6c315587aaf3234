import { PipeloraError } from "../common/errors.ts";
import { groupByNccl, type LinkEnd, type LinkSettings, ncclProblem, onOneHost } from "./nccl.ts";
import type { Plan } from "./plan.ts";

export type LinkKind = Exclude<LinkSettings["link"], "auto">;

export interface PlannedLink {
  /** Ascending. */
  readonly ranks: readonly [number, number];
  readonly kind: LinkKind;
}

/**
 * The link of a pair for tensors in device memory. With auto: NCCL between two GPUs of one host, else shared memory on one host, else gRPC.
 */
export function linkKind(settings: LinkSettings, a: LinkEnd, b: LinkEnd): LinkKind {
  return ncclProblem(settings, a, b) === null ? "nccl" : hostLinkKind(settings, a, b);
}

/** The link of a pair for tensors in host memory: never NCCL. */
export function hostLinkKind({ link }: LinkSettings, a: LinkEnd, b: LinkEnd): Exclude<LinkKind, "nccl"> {
  return link !== "grpc" && onOneHost(a, b) ? "shm" : "grpc";
}

export type PairUse = "tensors" | "tokens" | "gradients";

/** The pairs of ranks that exchange tensors, ascending, each with its most demanding use. */
export function linkedPairs(
  segments: readonly { readonly ranks: readonly number[] }[],
  replicas: readonly (readonly number[])[],
): { readonly ranks: readonly [number, number]; readonly use: PairUse }[] {
  const pairs = new Map<string, { ranks: readonly [number, number]; use: PairUse }>();
  const add = (a: number, b: number, use: PairUse) => {
    const ranks: [number, number] = [Math.min(a, b), Math.max(a, b)];
    const key = ranks.join(" ");
    if (a !== b && pairs.get(key)?.use !== "tensors") pairs.set(key, { ranks, use });
  };
  for (const ranks of replicas) {
    segments.forEach((segment, index) => {
      const next = segments[index + 1];
      // A chosen token goes from the head to the embedding, between the first rank of each.
      if (next === undefined) add(ranks[segment.ranks[0]!]!, ranks[segments[0]!.ranks[0]!]!, "tokens");
      else for (const from of segment.ranks) for (const to of next.ranks) add(ranks[from]!, ranks[to]!, "tensors");
    });
    ranks.forEach((rank, place) => {
      for (const other of replicas) add(rank, other[place]!, "gradients");
    });
  }
  return [...pairs.values()].sort((a, b) => a.ranks[0] - b.ranks[0] || a.ranks[1] - b.ranks[1]);
}

/**
 * Links of all pairs that exchange tensors: neighbours in a pipeline, its two ends, and ranks with the same stage in different replicas.
 * Errors: PL_CONFIG_INVALID if a pair can't have the kind that --link asks for.
 */
export function plannedLinks(
  settings: LinkSettings,
  devices: readonly LinkEnd[],
  { segments, replicas }: Pick<Plan, "segments" | "replicas">,
): PlannedLink[] {
  return linkedPairs(segments, replicas).map(({ ranks, use }) => {
    const [a, b] = ranks.map((rank) => devices[rank]!) as [LinkEnd, LinkEnd];
    expectPossible(settings, ranks, [a, b], use);
    if (use === "tokens") return { ranks, kind: hostLinkKind(settings, a, b) };
    if (use === "tensors") return { ranks, kind: linkKind(settings, a, b) };
    const group = replicas[0]!
      .map((_, place) => replicas.map((own) => own[place]!))
      .find((own) => own.includes(ranks[0]));
    return { ranks, kind: groupByNccl(settings, group!, devices) ? "nccl" : hostLinkKind(settings, a, b) };
  });
}

function expectPossible(
  settings: LinkSettings,
  ranks: readonly [number, number],
  [a, b]: readonly [LinkEnd, LinkEnd],
  use: PairUse,
): void {
  const between = `--link ${settings.link}: ranks ${ranks.join(" and ")}`;
  if (settings.link === "shm" && !onOneHost(a, b)) {
    const nodes = `${a.node} and ${b.node}`;
    throw new PipeloraError(
      "PL_CONFIG_INVALID",
      `${between} share no memory (nodes ${nodes}); between them there is grpc`,
      {
        hint: "Use --link auto, which takes shared memory wherever it can be had.",
      },
    );
  }
  if (settings.link !== "nccl" || use === "tokens") return;
  const problem = ncclProblem(settings, a, b);
  if (problem === null) return;
  const left = onOneHost(a, b) ? "shm and grpc" : "grpc";
  throw new PipeloraError("PL_CONFIG_INVALID", `${between} can't use NCCL: ${problem}; between them there is ${left}`, {
    hint: "Use --link auto, which takes for each pair the best that both have.",
  });
}

/** For people: "0–1 shm, 1–2 grpc", or how many of each kind where there are many. */
export function formatLinks(links: readonly PlannedLink[]): string {
  if (links.length <= 16) return links.map(({ ranks, kind }) => `${ranks.join("–")} ${kind}`).join(", ");
  const kinds = new Set(links.map(({ kind }) => kind));
  return [...kinds].map((kind) => `${links.filter((link) => link.kind === kind).length} pairs ${kind}`).join(", ");
}
