import { blocksOf, type CheckpointedBlocks, predictMemory } from "./memory.ts";
import type { PlanRequest } from "./request.ts";
import type { Segment } from "./segments.ts";
import { leastCachedBlocks } from "./weight-cache.ts";

/** What checkpointing starts from: every block recomputes, or none. */
export function fullCheckpointing(request: PlanRequest, segments: readonly Segment[]): number[] {
  if (request.work.checkpointing === "none") return segments.map(() => 0);
  return segments.map((segment) => blocksOf(request, segment));
}

/** With "auto", takes blocks out of checkpointing, one at a time from the last segment to the first, as long as the budgets hold. */
export function chooseCheckpointing(
  request: PlanRequest,
  segments: readonly Segment[],
  budgets: ReadonlyMap<number, number>,
): CheckpointedBlocks {
  const blocks = fullCheckpointing(request, segments);
  const cached = leastCachedBlocks(request, segments);
  if (request.work.checkpointing !== "auto" || request.lora.length === 0) return blocks;
  for (const { index, device } of [...segments].reverse()) {
    const fitsWith = (count: number) => {
      const total = predictMemory(request, segments, blocks.with(index, count), cached).get(device)!.total;
      return total <= (budgets.get(device) ?? 0);
    };
    let low = 0;
    let high = blocks[index]!;
    while (low < high) {
      const count = (low + high) >> 1;
      if (fitsWith(count)) high = count;
      else low = count + 1;
    }
    blocks[index] = low;
  }
  return blocks;
}
