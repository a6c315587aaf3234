import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/**
 * Collects the garbage of start-up. From then on the heap is collected only when it is full, all at once. V8 would take a coordinator that waits
 * for its workers for an idle web page, and collect three times as often in the first steps, marking in small increments. That avoids pauses; a
 * pause of some tens of milliseconds does no harm here.
 */
export function quietHeap(): void {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  collect();
  // Set right after a collection, when no marking is in progress.
  setFlagsFromString("--no-incremental-marking");
}
