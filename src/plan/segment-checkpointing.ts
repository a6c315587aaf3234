import { takenBytes } from "./arena.ts";
import { blocksOf, type Keeping } from "./keeping.ts";
import { trainedMatrices } from "./memory/kind-memory.ts";
import { predictDeviceMemory } from "./memory.ts";
import { mostOffloaded } from "./offload.ts";
import type { PlanRequest } from "./request.ts";
import type { Segment } from "./segments.ts";
import { leastCachedBlocks } from "./weight-cache.ts";

/** The checkpointing that placement assumes: every block recomputes, or none does. */
export function fullCheckpointing(request: PlanRequest, segments: readonly Segment[]): Keeping[] {
  const all = request.work.checkpointing !== "none";
  const cached = leastCachedBlocks(request, segments);
  return segments.map((segment, index) => ({
    offloaded: 0,
    checkpointed: all ? blocksOf(request, segment) : 0,
    cached: cached[index]!,
  }));
}

/**
 * Decides what becomes of activations, from the last segment to the first. With "all" none are kept on the device: as many blocks as possible
 * are offloaded and the others recompute. With "auto" as few blocks recompute as the budgets allow, and of the rest no more are offloaded
 * than must be.
 */
export function chooseCheckpointing(
  request: PlanRequest,
  segments: readonly Segment[],
  budgets: ReadonlyMap<number, number>,
): Keeping[] {
  const chosen = fullCheckpointing(request, segments);
  const { checkpointing } = request.work;
  if (checkpointing === "none" || trainedMatrices(request).length === 0) return chosen;
  for (const segment of [...segments].reverse()) {
    const { index } = segment;
    const blocks = blocksOf(request, segment);
    if (blocks === 0) continue;
    const [device] = segment.devices as [number];
    const start = chosen[index]!;
    const { kind } = request.devices.find(({ id }) => id === device)!;
    const fits = (offloaded: number, checkpointed: number) => {
      const tried = chosen.with(index, { ...start, offloaded, checkpointed });
      return takenBytes(predictDeviceMemory(request, segments, tried, device), kind) <= (budgets.get(device) ?? 0);
    };
    const most = mostOffloaded(request, segments, segment);
    const fewest = (offloaded: number) =>
      checkpointing === "all"
        ? blocks - offloaded
        : leastThat(blocks - offloaded, (checkpointed) => fits(offloaded, checkpointed));
    const [plain, away] = [fewest(0), fewest(most)];
    if (away >= plain || !fits(most, away)) {
      chosen[index] = { ...start, checkpointed: plain };
    } else if (away > 0 || checkpointing === "all") {
      chosen[index] = { ...start, offloaded: most, checkpointed: away };
    } else {
      chosen[index] = { ...start, offloaded: leastThat(most, (offloaded) => fits(offloaded, 0)), checkpointed: 0 };
    }
  }
  return chosen;
}

/** The smallest number up to `most` for which `does` is true, given that it is then true for all larger ones; `most` if there is none. */
function leastThat(most: number, does: (count: number) => boolean): number {
  let low = 0;
  let high = most;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (does(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}
