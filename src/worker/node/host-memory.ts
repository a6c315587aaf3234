import { setFlagsFromString } from "node:v8";
import type { NativeAddon } from "../../engine/index.ts";

/**
 * Prepares this process for buffers of megabytes that come and go with every message. Freed ones stay with the process,
 * or each costs the page faults of fresh memory; and the collector, which counts them as the heap's, is not to mark the
 * whole heap (some ten MB) after every few of them. Together more than half of a gRPC link's time. After start-up, once.
 */
export function expectLargeBuffers(addon: NativeAddon): void {
  addon.keepFreedMemory();
  setFlagsFromString("--heap-growing-percent=1000");
}
