import { readFile } from "node:fs/promises";
import { PipeloraError } from "../common/errors.ts";
import type { Config } from "../config/options.ts";
import type { Capabilities } from "../engine/index.ts";
import { type Device, devicesFromMaxMemory } from "../plan/devices.ts";
import type { FloatDtype } from "../plan/held-sizes.ts";
import { parseMaxMemory } from "../plan/max-memory.ts";
import { makePlan, type Plan } from "../plan/plan.ts";
import { type DeviceMapInput, type NamedStrategy, NO_OVERRIDES, STRATEGIES, type Work } from "../plan/request.ts";
import type { WorkerConnection } from "../rpc/worker-connection.ts";
import { computeDtype } from "./compute-dtype.ts";
import { localDevices } from "./local-devices.ts";
import type { ModelSetup } from "./model-setup.ts";
import type { BatchShape } from "./training-data.ts";

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

/** Plans for these devices. Errors: PL_DEVICE_UNAVAILABLE, and those of makePlan. */
export async function planFor(
  config: Config,
  setup: ModelSetup,
  devices: readonly Device[],
  work: Work,
): Promise<{ readonly plan: Plan; readonly computeDtype: FloatDtype }> {
  const { dtype, warning } = computeDtype(config, setup, devices);
  const { quantization } = setup;
  const plan = makePlan({
    spec: setup.spec,
    devices,
    maxMemory: config.max_memory === null ? null : parseMaxMemory(config.max_memory),
    strategy: await deviceMap(config.device_map),
    planner: config.planner,
    holding: {
      dtype: setup.holdDtype,
      quantization: quantization?.settings ?? { method: "none" },
      skipModules: [...(quantization?.skipped ?? [])],
    },
    computeDtype: dtype,
    lora: setup.lora?.targets ?? [],
    work,
    rates: NO_OVERRIDES,
  });
  const warnings = warning === null ? plan.warnings : [warning, ...plan.warnings];
  return { plan: { ...plan, warnings }, computeDtype: dtype };
}

export function trainingWork(config: Config, shape: BatchShape): Work {
  return {
    ...shape,
    schedule: config.schedule,
    checkpointing: config.gradient_checkpointing ? "all" : "none",
    cacheTokens: 0,
  };
}

/** One prompt at a time through a key/value cache; nothing is kept for a backward pass. */
export function generationWork(tokens: number): Work {
  return {
    microBatches: 1,
    tokens,
    labelTokens: 1,
    rowTokens: tokens,
    schedule: "sequential",
    checkpointing: "none",
    cacheTokens: tokens,
  };
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
