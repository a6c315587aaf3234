import type { Device } from "./devices.ts";
import type { DeviceMemory } from "./memory.ts";

/** An arena is larger than the prediction by this factor: the allocator aligns, and leaves holes. */
export const arenaMargin = 1.1;
/** Loading needs this much by itself: up to 16 MiB of a tensor's rows, and a weight's scales before double quantisation. */
const MINIMUM = { cpu: 16 << 20, cuda: 64 << 20 } as const;

/**
 * Bytes that a device's process takes in the end. A GPU's arena counts whole, with its margin. A CPU's arena counts as predicted, because
 * its pages are committed when they are touched.
 */
export function takenBytes(memory: DeviceMemory, kind: Device["kind"]): number {
  if (kind === "cpu" || memory.total === 0) return memory.total;
  return memory.total - memory.activations - memory.workspace + arenaBytes(memory, kind);
}

/** Bytes of the arena that a rank allocates for these predicted bytes. */
export function arenaBytes(
  { activations, workspace }: Pick<DeviceMemory, "activations" | "workspace">,
  kind: Device["kind"],
): number {
  return Math.ceil(Math.max(MINIMUM[kind], (activations + workspace) * arenaMargin));
}
