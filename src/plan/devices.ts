import { formatBytes } from "../common/bytes.ts";
import { PipeloraError } from "../common/errors.ts";
import type { GpuFacts } from "./paper/catalogue.ts";

/** The NCCL that a device's process can use. `version` null: none, and `reason` says why. */
export interface NcclAbility {
  readonly version: string | null;
  readonly reason: string | null;
}

/** A device as the plan sees it. `id` is its number in a device map and in max_memory. */
export interface Device {
  readonly id: number;
  readonly kind: "cpu" | "cuda";
  /** Hardware name, e.g. "NVIDIA H100 80GB HBM3"; null: unknown. */
  readonly name: string | null;
  /** Devices of one node share a fast link. */
  readonly node: string;
  /** The same for processes that can share memory. Absent: processes of one node can. */
  readonly host?: string;
  /** A GPU's PCI bus id: two devices with the same one are the same GPU. */
  readonly pciBusId?: string;
  /** A GPU's compute capability, e.g. [9, 0]. Absent: unknown. */
  readonly capability?: readonly [major: number, minor: number];
  /** A GPU's rates, where its name does not tell them. */
  readonly facts?: GpuFacts;
  /** Absent: unknown. */
  readonly nccl?: NcclAbility;
  /** Bytes free for this process. Null: unknown; max_memory must then name the device. */
  readonly memoryBytes: number | null;
  /** For a GPU: bytes free in its host's memory. Null or absent: unknown. */
  readonly hostMemoryBytes?: number | null;
  /** How many GPUs use that memory, this one and those of other replicas included. Absent: the GPUs of its node that have layers. */
  readonly hostSharers?: number;
}

/** How many GPUs a node has. */
export function gpusOf(devices: readonly Device[], node: string): number {
  return devices.filter((device) => device.kind === "cuda" && device.node === node).length;
}

/** Keys of accelerate's max_memory and values of its device maps. */
export type DeviceKey = number | "cpu" | "disk";
export type MaxMemory = ReadonlyMap<DeviceKey, number>;
/** Module name -> device, in order of placement. */
export type DeviceMap = ReadonlyMap<string, DeviceKey>;

/** Without max_memory, a plan takes this share of a device's free memory. The allocator and the driver need the rest. */
const FREE_SHARE = { cpu: 0.9, cuda: 0.95 } as const;

export interface Budgets {
  /** Bytes for each device, ids ascending; 0: not to be used. A GPU's is at most what is free. Devices that max_memory leaves out are absent. */
  readonly bytes: ReadonlyMap<number, number>;
  /** "cpu" and "disk", if max_memory names them. They get no layers. */
  readonly offload: readonly string[];
  readonly warnings: readonly string[];
}

/**
 * What each device may hold. As in accelerate, devices that max_memory leaves out or gives 0 are not used. Unlike there, cpu and disk take
 * no layers. Errors: PL_CONFIG_INVALID.
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

/** Devices for a plan without hardware: one for each id in max_memory, all on one node. */
export function devicesFromMaxMemory(maxMemory: MaxMemory, kind: Device["kind"], name: string | null = null): Device[] {
  return [...maxMemory.keys()]
    .filter((key) => typeof key === "number")
    .sort((a, b) => a - b)
    .map((id) => ({ id, kind, name, node: "local", memoryBytes: null }));
}
