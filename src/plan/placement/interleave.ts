import { evenPartition, type StageDevice } from "./partition.ts";
import type { PlacementProblem } from "./planner.ts";

/** Most segments a device that are tried. */
const MOST_CHUNKS = 4;

/**
 * Devices of the units for interleaving: v segments a device, dealt out round robin (Megatron-LM), for every v that leaves each
 * segment a unit and each device room. [way][unit]. Loads of the segments are as even as can be; whether a device's whole memory
 * holds is for the caller to see.
 */
export function interleavedPlacements({ devices, units }: PlacementProblem): number[][] {
  const usable = devices.filter((device) => device.capacity > 0);
  const ways: number[][] = [];
  for (let chunks = 2; chunks <= MOST_CHUNKS && usable.length > 1; chunks++) {
    const dealt = Array.from({ length: chunks }, () => usable).flat();
    if (dealt.length > units) break;
    const rounds: StageDevice[] = dealt.map((device) => ({ ...device, capacity: device.capacity / chunks }));
    const stages = evenPartition({ devices: rounds, required: null, from: 0, to: units, inFlight: () => 1 });
    if (stages !== null)
      ways.push(stages.flatMap(({ device, first, end }) => Array<number>(end - first).fill(device.id)));
  }
  return ways;
}
