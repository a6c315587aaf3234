import { takenBytes } from "./arena.ts";
import { blocksOf, type Keeping } from "./keeping.ts";
import { predictDeviceMemory } from "./memory.ts";
import type { PlanRequest } from "./request.ts";
import type { Segment } from "./segments.ts";

/** Up to this many tokens, products read 4-bit codes directly (native/ops/cuda/kernel_choice.h). */
const FEW_TOKENS = 8;

/** Cached blocks that placement assumes, by segment: all with "on", else none. */
export function leastCachedBlocks(request: PlanRequest, segments: readonly Segment[]): readonly number[] {
  const quantized = request.holding.quantization.method !== "none";
  const all = request.weightCache === "on" && quantized;
  return segments.map((segment) => (all ? blocksOf(request, segment) : 0));
}

/**
 * `keeping` with more blocks cached. With "auto" each GPU caches as many as its budget holds after checkpointing is chosen: a byte spent on
 * keeping activations saves several times as much time (docs/decisions/compute/weight-cache.md). CPUs cache none, because they expand a panel
 * at a time within their own caches. Generation of a few sequences caches none, because its products read the codes.
 */
export function chooseCachedBlocks(
  request: PlanRequest,
  segments: readonly Segment[],
  keeping: readonly Keeping[],
  budgets: ReadonlyMap<number, number>,
): Keeping[] {
  const chosen = [...keeping];
  const { forwardOnly, cacheSequences = 1 } = request.work;
  const readsCodes = forwardOnly === true && cacheSequences <= FEW_TOKENS;
  if (request.weightCache !== "auto" || readsCodes || request.holding.quantization.method === "none") return chosen;
  for (const device of request.devices.filter(({ kind }) => kind === "cuda")) {
    const own = segments.filter((segment) => segment.devices.includes(device.id));
    const counts = own.map((segment) => blocksOf(request, segment));
    const total = counts.reduce((sum, count) => sum + count, 0);
    const deal = (blocks: number) => {
      let left = blocks;
      for (const [position, { index }] of own.entries()) {
        const cached = Math.min(left, counts[position]!);
        chosen[index] = { ...chosen[index]!, cached };
        left -= cached;
      }
    };
    const fits = (blocks: number) => {
      deal(blocks);
      const memory = predictDeviceMemory(request, segments, chosen, device.id);
      return takenBytes(memory, device.kind) <= (budgets.get(device.id) ?? 0);
    };
    // When every block is cached, no room for expansion is needed: all may fit where all but one do not.
    if (total === 0 || fits(total)) continue;
    let low = 0;
    let high = total - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (fits(middle)) low = middle;
      else high = middle - 1;
    }
    deal(low);
  }
  return chosen;
}
