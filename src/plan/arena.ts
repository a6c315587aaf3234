import type { Device } from "./devices.ts";
import type { DeviceMemory } from "./memory.ts";

/** Share by which an arena exceeds the prediction: room for the allocator's alignment and holes. */
export const arenaMargin = 1.1;
/** Loading alone takes up to 16 MiB of a tensor's rows at a time, and a weight's scales before their own quantisation. */
const MINIMUM = { cpu: 16 << 20, cuda: 64 << 20 } as const;

/** Bytes of a rank's arena for what the plan predicts. */
export function arenaBytes(
  { activations, workspace }: Pick<DeviceMemory, "activations" | "workspace">,
  kind: Device["kind"],
): number {
  return Math.ceil(Math.max(MINIMUM[kind], (activations + workspace) * arenaMargin));
}
