import type { PlanRequest } from "./request.ts";
import type { Segment } from "./segments.ts";

/** What the blocks of one segment keep, in lists with an entry a segment: activations between forward and backward, and expanded weights. */
export interface Keeping {
  /** How many blocks offload their activations to the host, evenly spread: of k among B, block j where j k mod B < k. 0 on CPUs. */
  readonly offloaded: number;
  /**
   * How many of the others, from the first on, keep only their input and recompute. If any block is offloaded, those inputs are on the
   * host too.
   */
  readonly checkpointed: number;
  /** How many blocks, from the first on, keep their quantised weights in the compute dtype too. */
  readonly cached: number;
}

export const PLAIN_KEEPING: Keeping = { offloaded: 0, checkpointed: 0, cached: 0 };

/** What becomes of a layer's activations until its backward pass. */
export type Activations = "kept" | "recomputed" | "offloaded";

export function blocksOf({ spec }: Pick<PlanRequest, "spec">, { firstLayer, lastLayer }: Segment): number {
  return spec.layers.slice(firstLayer, lastLayer + 1).filter(({ kind }) => kind === "block").length;
}

/** The layers of a segment. A block also has its number among the segment's blocks, and what becomes of its activations. */
export function segmentLayers(
  request: Pick<PlanRequest, "spec">,
  segment: Segment,
  { offloaded, checkpointed }: Keeping,
): { layer: number; block: number | null; activations: Activations }[] {
  const all = blocksOf(request, segment);
  let blocks = 0;
  let others = 0;
  return request.spec.layers.slice(segment.firstLayer, segment.lastLayer + 1).map(({ kind }, offset) => {
    const layer = segment.firstLayer + offset;
    if (kind !== "block") return { layer, block: null, activations: "kept" };
    const block = blocks++;
    if ((block * offloaded) % all < offloaded) return { layer, block, activations: "offloaded" };
    return { layer, block, activations: others++ < checkpointed ? "recomputed" : "kept" };
  });
}
