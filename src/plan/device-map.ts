import { PipeloraError } from "../common/errors.ts";
import { nearest } from "../common/nearest.ts";
import type { LayerSpec, ModelSpec } from "../models/spec.ts";
import { cleanDeviceMap } from "./accelerate/clean-device-map.ts";
import { isUnder, parentOf } from "./accelerate/module-tree.ts";
import type { Device, DeviceKey, DeviceMap } from "./devices.ts";
import type { DeviceMapInput, MapDevice } from "./request.ts";
import type { LayerDevices } from "./segments.ts";

export interface ExpandedMap {
  /** The devices of each layer, in the order of spec.layers. */
  readonly layerDevices: LayerDevices;
  readonly warnings: readonly string[];
}

/**
 * Reads a device map as transformers does: keys are names of modules or tensors, the longest prefix wins, "" is the whole model.
 * Every stored tensor must be covered, and each layer (embedding, block, norm, head) must lie on one device. A key that names nothing gives
 * a warning. A tied head on another device than the embedding holds a copy of the weight. Unlike in transformers, the head and the final
 * norm may have a list of devices: each holds a copy, and they take micro-batches in turn.
 * Errors: PL_DEVICE_MAP_INVALID.
 */
export function expandDeviceMap(spec: ModelSpec, map: DeviceMapInput, devices: readonly Device[]): ExpandedMap {
  const keys = Object.keys(map);
  if (keys.length === 0) throw invalid("The device map is empty.", `Name at least the whole model: {"": 0}.`);
  const places: Places = new Map(Object.entries(map).map(([key, value]) => [key, resolveDevices(key, value, devices)]));
  const tensors = storedTensors(spec);
  checkCovered(tensors, places);
  return {
    layerDevices: spec.layers.map((layer) => devicesOfLayer(layer, tensors, places)),
    warnings: unknownKeys(spec, tensors, keys),
  };
}

/** The devices that each key names. */
type Places = ReadonlyMap<string, readonly number[]>;

function resolveDevices(key: string, value: MapDevice | readonly MapDevice[], devices: readonly Device[]): number[] {
  if (typeof value !== "object") return [resolveDevice(key, value, devices)];
  const found = value.map((one) => resolveDevice(key, one, devices));
  if (found.length > 0 && new Set(found).size === found.length) return found;
  throw invalid(
    `The device map gives "${key}" the devices [${value}]: expected one or more, each once.`,
    "Name each once.",
  );
}

function resolveDevice(key: string, value: MapDevice, devices: readonly Device[]): number {
  const cpus = devices.filter((device) => device.kind === "cpu");
  if (value === "cpu" && cpus.length === 1) return cpus[0]!.id;
  const digits = /^(?:cuda:)?(\d{1,6})$/.exec(String(value))?.[1];
  if (digits !== undefined && devices.some((device) => device.id === Number(digits))) return Number(digits);
  const where = key === "" ? `the whole model ("")` : `"${key}"`;
  const offload = value === "cpu" || value === "disk" || value === "meta";
  throw invalid(
    `The device map puts ${where} on ${JSON.stringify(value)}; the devices are ${devices.map(({ id }) => id).join(", ")}.`,
    offload
      ? "Layers are never offloaded: give it one of the devices, or load in 4 bits."
      : "Use one of these numbers, or start more workers.",
  );
}

/** Names of all tensors as state_dict() lists them: a tied tensor under each of its names. */
function storedTensors(spec: ModelSpec): string[] {
  const own = spec.tensors.filter((tensor) => tensor.kind === "parameter" || tensor.persistent);
  return [...own.map((tensor) => tensor.name), ...spec.tied.map(([alias]) => alias)];
}

function checkCovered(tensors: readonly string[], places: Places): void {
  const missing = tensors.filter((tensor) => lookUp(places, tensor) === undefined);
  if (missing.length === 0) return;
  const modules = [...new Set(missing.map(parentOf))];
  const named = modules.slice(0, 5).join(", ") + (modules.length > 5 ? `, … (${modules.length} modules)` : "");
  throw invalid(`The device map leaves out ${named}.`, `Add a key for each, or "" for all that has none.`);
}

function devicesOfLayer(layer: LayerSpec, tensors: readonly string[], places: Places): readonly number[] {
  const own = tensors.filter((tensor) => isUnder(tensor, layer.name));
  const found = new Map(own.map((tensor) => [lookUp(places, tensor)!.join(), tensor]));
  const what = layer.kind === "block" ? `block ${layer.name}` : layer.name;
  if (found.size > 1) {
    const parts = [...found].map(([ids, tensor]) => `${parentOf(tensor)} on ${ids}`).join(", ");
    throw invalid(`The device map splits ${what}: ${parts}.`, `Give all of it one device: {"${layer.name}": 0}.`);
  }
  const devices = lookUp(places, own[0]!)!;
  if (devices.length === 1 || layer.kind === "head" || layer.kind === "norm") return devices;
  throw invalid(
    `The device map puts ${what} on devices ${devices.join(", ")}: only the final norm and the head may be on several.`,
    `Give it one device: {"${layer.name}": ${devices[0]}}.`,
  );
}

/** The devices of the longest key that is `name` or a dotted prefix of it. */
function lookUp(places: Places, name: string): readonly number[] | undefined {
  for (let prefix = name; ; prefix = parentOf(prefix)) {
    const device = places.get(prefix);
    if (device !== undefined || prefix === "") return device;
  }
}

function unknownKeys(spec: ModelSpec, tensors: readonly string[], keys: readonly string[]): string[] {
  const modules = spec.modules.map((module) => module.name);
  const known = new Set([...modules, ...tensors, ...spec.tensors.map((tensor) => tensor.name)]);
  return keys
    .filter((key) => !known.has(key))
    .map((key) => {
      const near = nearest(key, modules);
      return `the device map's "${key}" names no module${near.length > 0 ? ` (near: ${near.join(", ")})` : ""}`;
    });
}

/**
 * The placement as transformers' hf_device_map shows it: module names to devices, collapsed as accelerate does. A module without weights
 * (rotary tables, dropout) goes with the layer before it. A map has one device a module: a layer on several is shown on the device of the
 * layer before it if that is one of them, else on its first.
 */
export function hfDeviceMap(spec: ModelSpec, layerDevices: LayerDevices): DeviceMap {
  const layerOf = new Map(spec.layers.map((layer, index) => [layer.name, index]));
  const outer = new Set<string>();
  for (const { name } of spec.layers) for (let up = parentOf(name); up !== ""; up = parentOf(up)) outer.add(up);
  const map = new Map<string, DeviceKey>();
  let device = layerDevices[0]![0]!;
  for (const { name } of spec.modules) {
    const layer = layerOf.get(name);
    if (layer !== undefined) device = layerDevices[layer]!.includes(device) ? device : layerDevices[layer]![0]!;
    else if (name === "" || outer.has(name) || isInsideAny(name, map)) continue;
    map.set(name, device);
  }
  return cleanDeviceMap(map);
}

function isInsideAny(name: string, map: ReadonlyMap<string, DeviceKey>): boolean {
  for (let up = parentOf(name); up !== ""; up = parentOf(up)) if (map.has(up)) return true;
  return false;
}

function invalid(message: string, hint: string): PipeloraError {
  return new PipeloraError("PL_DEVICE_MAP_INVALID", message, { hint });
}
