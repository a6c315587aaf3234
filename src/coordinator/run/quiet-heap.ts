import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/**
 * Collects what starting up left behind; from then on all of the heap is collected only when it is full. V8 would take a
 * coordinator that waits for its workers for an idle page and collect three times more in its first steps. It does so, and
 * marks in small steps, for pages that must not pause: here a pause of some tens of milliseconds harms nobody.
 */
export function quietHeap(): void {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  collect();
  // Right after a collection no marking is under way.
  setFlagsFromString("--no-incremental-marking");
}
