import { formatBytes } from "../common/bytes.ts";
import { PipeloraError } from "../common/errors.ts";
import type { GpuFacts } from "./paper/catalogue.ts";

/** What a device's process can do with NCCL; version null: nothing, and why. */
export interface NcclAbility {
  readonly version: string | null;
  readonly reason: string | null;
}

/** A device as the plan sees it; `id` is what a device map and max_memory call it. */
export interface Device {
  readonly id: number;
  readonly kind: "cpu" | "cuda";
  /** Hardware name, e.g. "NVIDIA H100 80GB HBM3"; null: unknown. */
  readonly name: string | null;
  /** Devices of one node share a fast link. */
  readonly node: string;
  /** Equal where processes can share memory; absent: by node. */
  readonly host?: string;
  /** A GPU's place in its host: the same for the same GPU. */
  readonly pciBusId?: string;
  /** Of a GPU: its compute capability, e.g. [9, 0]. Absent: not known. */
  readonly capability?: readonly [major: number, minor: number];
  /** Of a GPU that its name does not tell. */
  readonly facts?: GpuFacts;
  /** Absent: not known. */
  readonly nccl?: NcclAbility;
  /** Bytes that are free for this process; null: unknown, then max_memory must name the device. */
  readonly memoryBytes: number | null;
  /** Of a GPU: bytes that are free in its host's memory; null or absent: unknown. */
  readonly hostMemoryBytes?: number | null;
  /** GPUs that use that memory, itself counted, in other replicas too; absent: those of its node that a plan gives layers. */
  readonly hostSharers?: number;
}

/** GPUs of a node. */
export function gpusOf(devices: readonly Device[], node: string): number {
  return devices.filter((device) => device.kind === "cuda" && device.node === node).length;
}

/** Keys of accelerate's max_memory and values of its device maps. */
export type DeviceKey = number | "cpu" | "disk";
export type MaxMemory = ReadonlyMap<DeviceKey, number>;
/** Module name -> device, in order of placement. */
export type DeviceMap = ReadonlyMap<string, DeviceKey>;

/** Share of a device's free memory that a plan takes when no max_memory is given; the rest is the allocator's and the driver's. */
const FREE_SHARE = { cpu: 0.9, cuda: 0.95 } as const;

export interface Budgets {
  /** Bytes a device, ids ascending, on GPUs at most what is free; 0: not to be used. Devices that max_memory leaves out are not listed. */
  readonly bytes: ReadonlyMap<number, number>;
  /** "cpu" and "disk" where max_memory names them: no layers go there. */
  readonly offload: readonly string[];
  readonly warnings: readonly string[];
}

/**
 * What each device may hold. max_memory decides which devices are used, as in accelerate: ids it leaves out, and budgets of 0, are not.
 * Unlike there, cpu and disk take no layers: a plan never spills. Errors: PL_CONFIG_INVALID.
 */
export function budgetsOf(devices: readonly Device[], maxMemory: MaxMemory | null): Budgets {
  const byId = new Map(devices.map((device) => [device.id, device]));
  if (byId.size !== devices.length) {
    throw new PipeloraError(
      "PL_INTERNAL",
      `Two devices share an id: ${devices.map((device) => device.id).join(", ")}.`,
    );
  }
  const sorted = [...byId.values()].sort((a, b) => a.id - b.id);
  if (maxMemory === null) {
    return { bytes: new Map(sorted.map((device) => [device.id, defaultBudget(device)])), offload: [], warnings: [] };
  }
  const warnings: string[] = [];
  const offload: string[] = [];
  const bytes = new Map<number, number>();
  for (const [key, budget] of [...maxMemory].sort(([a], [b]) => Number(a) - Number(b))) {
    if (typeof key !== "number") {
      offload.push(key);
      continue;
    }
    const device = byId.get(key);
    if (device === undefined) {
      throw new PipeloraError(
        "PL_CONFIG_INVALID",
        `max_memory names device ${key}; the devices are ${sorted.map((known) => known.id).join(", ")}.`,
        { hint: "Name only devices that are there, or start more workers." },
      );
    }
    const free = device.kind === "cuda" ? (device.memoryBytes ?? Number.POSITIVE_INFINITY) : Number.POSITIVE_INFINITY;
    if (budget > free) {
      warnings.push(`max_memory gives device ${key} more than its ${formatBytes(free)} of free memory: that is taken`);
    }
    bytes.set(key, Math.min(budget, free));
  }
  return { bytes, offload, warnings };
}

function defaultBudget(device: Device): number {
  if (device.memoryBytes === null) {
    throw new PipeloraError("PL_CONFIG_INVALID", `The memory of device ${device.id} is unknown.`, {
      hint: `Give its budget: --max-memory '{"${device.id}": "10GiB"}'.`,
    });
  }
  return Math.floor(device.memoryBytes * FREE_SHARE[device.kind]);
}

/** Devices that exist only on paper: one for each id that max_memory names, all on one node. */
export function devicesFromMaxMemory(maxMemory: MaxMemory, kind: Device["kind"], name: string | null = null): Device[] {
  return [...maxMemory.keys()]
    .filter((key) => typeof key === "number")
    .sort((a, b) => a - b)
    .map((id) => ({ id, kind, name, node: "local", memoryBytes: null }));
}
