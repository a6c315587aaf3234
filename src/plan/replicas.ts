import { PipeloraError } from "../common/errors.ts";
import { type Device, gpusOf, type MaxMemory } from "./devices.ts";
import { LORA_BYTES_PER_PARAMETER } from "./memory/held-sizes.ts";
import { attemptPlan, IDLE, Infeasible, type Plan } from "./plan.ts";
import type { PlanRequest } from "./request.ts";
import { linkRate } from "./time/rates.ts";

const GRADIENT_BYTES = 4;

/**
 * A plan for `replicas` copies of the pipeline. Each takes the same number of consecutive devices, and all have the same segments: those
 * that fit the weakest device at each place. `request.work` is the work of one replica. max_memory names every device; a device map places
 * the first replica. Left-over devices stay idle.
 * Errors: those of makePlan, except that Infeasible is returned where nothing fits or there are fewer devices than replicas.
 */
export function attemptReplicatedPlan(request: PlanRequest, replicas: number): Plan | Infeasible {
  if (replicas === 1) return attemptPlan(request);
  const devices = [...request.devices].sort((a, b) => a.id - b.id);
  const each = Math.floor(devices.length / replicas);
  if (each === 0) {
    const message = `${replicas} replicas need a device each, there are ${devices.length} devices.`;
    const hint = "Lower --replicas, or bring more workers.";
    return new Infeasible(() => new PipeloraError("PL_PLACEMENT_INFEASIBLE", message, { hint }));
  }
  const groups = Array.from({ length: replicas }, (_, replica) => devices.slice(replica * each, (replica + 1) * each));
  const places = groups[0]!.map((_, place) => groups.map((group) => group[place]!));
  const one = attemptPlan({
    ...request,
    devices: places.map((place) => leastOf(place, devices)),
    maxMemory: request.maxMemory === null ? null : leastBudgets(request.maxMemory, places),
    rates: { ...request.rates, crowded: crowdedShare(request.rates.crowded, groups) },
  });
  if (one instanceof Infeasible) return one;
  const left = devices.slice(each * replicas);
  const idle = left.length === 0 ? [] : [`${left.length} of ${devices.length} devices are left over and stay idle`];
  return {
    ...one,
    replicas: groups.map((_, replica) => places.map((_place, place) => replica * each + place)),
    devices: devices.map(({ id }, rank) => {
      const planned = rank < each * replicas ? one.devices[rank % each]! : { segments: [], memory: IDLE };
      return { ...planned, device: id, rank };
    }),
    predicted: one.predicted === null ? null : replicated(request, one, places),
    warnings: [...one.warnings, ...idle],
  };
}

/** A device with the least memory of these. `all`: the devices of the run, for how many share a host's memory. */
function leastOf(devices: readonly Device[], all: readonly Device[]): Device {
  const known = devices.map((device) => device.memoryBytes).filter((bytes) => bytes !== null);
  const hosts = devices.map(({ hostMemoryBytes }) => hostMemoryBytes ?? 0);
  return {
    ...devices[0]!,
    memoryBytes: known.length === 0 ? null : Math.min(...known),
    hostMemoryBytes: Math.min(...hosts),
    hostSharers: Math.max(...devices.map(({ node }) => gpusOf(all, node))),
  };
}

/** The first replica's share of the cores of crowded nodes, in proportion to its devices there. */
function crowdedShare(
  crowded: ReadonlyMap<string, number>,
  groups: readonly (readonly Device[])[],
): Map<string, number> {
  const on = (devices: readonly Device[], node: string) => devices.filter((device) => device.node === node).length;
  return new Map(
    [...crowded].map(([node, fullSpeed]) => [
      node,
      (fullSpeed * on(groups[0]!, node)) / Math.max(1, on(groups.flat(), node)),
    ]),
  );
}

function leastBudgets(budgets: MaxMemory, places: readonly (readonly Device[])[]): MaxMemory {
  const least = new Map([...budgets].filter(([key]) => typeof key !== "number"));
  for (const devices of places) {
    const given = devices.map(({ id }) => budgets.get(id)).filter((bytes) => bytes !== undefined);
    if (given.length === devices.length) least.set(devices[0]!.id, Math.min(...given));
  }
  return least;
}

/** One replica's step, and then the sum of gradients over R replicas, which moves 2 (R − 1) / R of their bytes in two rounds. */
function replicated(request: PlanRequest, one: Plan, places: readonly (readonly Device[])[]): Plan["predicted"] {
  const { stepTimeMs, bubble, tokensPerSecond } = one.predicted!;
  const replicas = places[0]!.length;
  const sums = places.map(([first, second], place) => {
    const link = linkRate(first!, second!, request.rates)!;
    const bytes = (one.devices[place]!.memory.lora * GRADIENT_BYTES) / LORA_BYTES_PER_PARAMETER;
    return 2 * link.latency + (2 * (replicas - 1) * bytes) / (replicas * link.bytesPerSecond);
  });
  const sumMs = 1e3 * Math.max(...sums);
  const together = stepTimeMs + sumMs;
  return {
    ...one.predicted!,
    stepTimeMs: together,
    sumMs,
    bubble: 1 - ((1 - bubble) * stepTimeMs) / together,
    tokensPerSecond: (replicas * tokensPerSecond * stepTimeMs) / together,
  };
}
