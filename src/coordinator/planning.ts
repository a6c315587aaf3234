import { readFile } from "node:fs/promises";
import { PipeloraError } from "../common/errors.ts";
import type { Config } from "../config/options.ts";
import type { Capabilities } from "../engine/index.ts";
import { fastestPlan } from "../plan/choose.ts";
import { type Device, devicesFromMaxMemory } from "../plan/devices.ts";
import type { FloatDtype } from "../plan/held-sizes.ts";
import { parseMaxMemory } from "../plan/max-memory.ts";
import type { Plan } from "../plan/plan.ts";
import { type DeviceMapInput, type NamedStrategy, type RateOverrides, STRATEGIES } from "../plan/request.ts";
import type { WorkerConnection } from "../rpc/worker-connection.ts";
import { computeDtype } from "./compute-dtype.ts";
import { localDevices } from "./local-devices.ts";
import type { ModelSetup } from "./model-setup.ts";
import type { Cut, Workload } from "./workload.ts";

/** Devices of the workers that joined; a rank is a device's number. CPU workers of one node share its memory. */
export function joinedDevices(members: readonly WorkerConnection[]): Device[] {
  return members.map(({ hello }, id) => {
    const kind = hello.device === "cpu" ? "cpu" : "cuda";
    const sharing = members.filter((other) => other.hello.node === hello.node && other.hello.device === "cpu").length;
    return {
      id,
      kind,
      name: hello.deviceName,
      node: hello.node,
      memoryBytes: kind === "cpu" ? Math.floor(hello.memoryBytes / sharing) : hello.memoryBytes,
    };
  });
}

/** Devices for a plan without workers: those that --max-memory names, else those a run would start here. */
export function paperDevices(config: Config, capabilities: Capabilities): Device[] {
  const gpus = capabilities.cuda?.devices ?? [];
  if (config.max_memory !== null) {
    const kind = gpus.length > 0 || config.workers === null ? "cuda" : "cpu";
    return devicesFromMaxMemory(parseMaxMemory(config.max_memory), kind, gpus[0]?.name ?? null);
  }
  const { devices } = localDevices(config, capabilities);
  return devices.map((device, id): Device => {
    const gpu = gpus.find(({ index }) => `cuda:${index}` === device);
    return {
      id,
      kind: gpu === undefined ? "cpu" : "cuda",
      name: gpu?.name ?? null,
      node: "local",
      memoryBytes: gpu?.freeBytes ?? Math.floor(capabilities.cpu.memoryBytes / devices.length),
    };
  });
}

export interface ChosenPlan {
  readonly plan: Plan;
  /** How steps are cut under it. */
  readonly cut: Cut;
  readonly computeDtype: FloatDtype;
}

/**
 * Plans for these devices. Under `fastest` the cut of a step and the number of replicas are the plan's to choose, unless
 * --deterministic-batches keeps to the one that does not depend on the placement. Errors: PL_DEVICE_UNAVAILABLE, and those of makePlan.
 */
export async function planFor(
  config: Config,
  setup: ModelSetup,
  devices: readonly Device[],
  workload: Workload,
  rates: RateOverrides,
): Promise<ChosenPlan> {
  const { dtype, warning } = computeDtype(config, setup, devices);
  const { quantization } = setup;
  const request = {
    spec: setup.spec,
    devices,
    maxMemory: config.max_memory === null ? null : parseMaxMemory(config.max_memory),
    strategy: await deviceMap(config.device_map),
    planner: config.planner,
    holding: {
      dtype: setup.holdDtype,
      quantization: quantization?.settings ?? ({ method: "none" } as const),
      skipModules: [...(quantization?.skipped ?? [])],
    },
    computeDtype: dtype,
    lora: setup.lora?.targets ?? [],
    rates,
  };
  const free = request.strategy === "fastest" && !config.deterministic_batches;
  const cuts = free ? workload.free(devices) : [workload.fixed(devices)];
  const { plan, choice: cut } = fastestPlan(request, cuts);
  const warnings = warning === null ? plan.warnings : [warning, ...plan.warnings];
  return { plan: { ...plan, warnings }, cut, computeDtype: dtype };
}

/** A strategy's name, a map from YAML, or the path of a JSON file {module: device}. */
async function deviceMap(value: Config["device_map"]): Promise<NamedStrategy | DeviceMapInput> {
  if (typeof value !== "string") return value;
  if ((STRATEGIES as readonly string[]).includes(value)) return value as NamedStrategy;
  let parsed: unknown;
  try {
    parsed = JSON.parse(await readFile(value, "utf8"));
  } catch (cause) {
    throw new PipeloraError("PL_DEVICE_MAP_INVALID", `--device-map ${value}: ${(cause as Error).message}`, {
      cause,
      hint: `Name one of ${STRATEGIES.join(", ")}, or a JSON file {"module": device}.`,
    });
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
    throw new PipeloraError("PL_DEVICE_MAP_INVALID", `${value}: expected an object {"module": device}`);
  }
  const bad = Object.entries(parsed).find(([, device]) => typeof device !== "number" && typeof device !== "string");
  if (bad !== undefined) {
    throw new PipeloraError(
      "PL_DEVICE_MAP_INVALID",
      `${value}: "${bad[0]}" is on ${JSON.stringify(bad[1])}, expected a device`,
    );
  }
  return parsed as DeviceMapInput;
}
