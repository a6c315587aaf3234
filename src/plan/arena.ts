import type { Device } from "./devices.ts";
import type { DeviceMemory } from "./memory.ts";

/** Share by which an arena exceeds the prediction: room for the allocator's alignment and holes. */
export const arenaMargin = 1.1;
/** Loading alone takes up to 16 MiB of a tensor's rows at a time, and a weight's scales before their own quantisation. */
const MINIMUM = { cpu: 16 << 20, cuda: 64 << 20 } as const;

/** Bytes that a device's process takes in the end: the whole arena of a GPU, its margin too; a CPU's is committed as it is touched. */
export function takenBytes(memory: DeviceMemory, kind: Device["kind"]): number {
  if (kind === "cpu" || memory.total === 0) return memory.total;
  return memory.total - memory.activations - memory.workspace + arenaBytes(memory, kind);
}

/** Bytes of a rank's arena for what the plan predicts. */
export function arenaBytes(
  { activations, workspace }: Pick<DeviceMemory, "activations" | "workspace">,
  kind: Device["kind"],
): number {
  return Math.ceil(Math.max(MINIMUM[kind], (activations + workspace) * arenaMargin));
}
