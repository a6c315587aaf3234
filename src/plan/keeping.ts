import type { PlanRequest } from "./request.ts";
import type { Segment } from "./segments.ts";

/** What the blocks of a segment do between forward and backward, and with their weights. One a segment, by its index. */
export interface Keeping {
  /** Blocks, evenly spread, whose activations wait in the host's memory: j of B where j k mod B < k. 0 on CPUs. */
  readonly offloaded: number;
  /** Of the others, the first ones keep only their input (on the host too, if any is offloaded) and recompute. */
  readonly checkpointed: number;
  /** The first blocks, whose quantised weights are kept in the compute dtype too. */
  readonly cached: number;
}

export const PLAIN_KEEPING: Keeping = { offloaded: 0, checkpointed: 0, cached: 0 };

/** Where a layer's activations are until its backward pass. */
export type Activations = "kept" | "recomputed" | "offloaded";

export function blocksOf({ spec }: Pick<PlanRequest, "spec">, { firstLayer, lastLayer }: Segment): number {
  return spec.layers.slice(firstLayer, lastLayer + 1).filter(({ kind }) => kind === "block").length;
}

/** The layers of a segment, the number of each that is a block among its blocks, and where its activations are. */
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
