import type { Device } from "../plan/devices.ts";
import type { DeviceMemory } from "../plan/memory.ts";

/** Share by which an arena exceeds the prediction: room for the allocator's alignment and holes. */
const MARGIN = 1.1;
const MINIMUM = 16 << 20;
/** A GPU's products also take cuBLASLt's workspace and rows and columns of padding from its arena. */
const GPU_EXTRA = 256 << 20;

/** Bytes of a rank's arena for what the plan predicts. */
export function arenaBytes(
  { activations, workspace }: Pick<DeviceMemory, "activations" | "workspace">,
  kind: Device["kind"],
): number {
  return Math.ceil(Math.max(MINIMUM, (activations + workspace) * MARGIN) + (kind === "cuda" ? GPU_EXTRA : 0));
}
