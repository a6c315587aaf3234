import { setFlagsFromString } from "node:v8";
import type { NativeAddon } from "../../engine/index.ts";

/**
 * Prepares this process for buffers of megabytes that come and go with every message. Call it once, after start-up. Freed buffers stay with
 * the process, because fresh memory costs page faults. V8 counts buffers as heap and would mark the whole heap (some ten MB) after every few
 * of them: it is told not to. Together the two cost more than half of a gRPC link's time.
 */
export function expectLargeBuffers(addon: NativeAddon): void {
  addon.keepFreedMemory();
  setFlagsFromString("--heap-growing-percent=1000");
}
