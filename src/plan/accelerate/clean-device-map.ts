import type { DeviceKey, DeviceMap } from "../devices.ts";
import { isUnder } from "./module-tree.ts";

/**
 * accelerate's clean_device_map: if two or more entries under a prefix all have one device, they become one entry, recursively. A map with
 * one device throughout becomes {"": device}.
 */
export function cleanDeviceMap(map: DeviceMap): Map<string, DeviceKey> {
  const cleaned = new Map(map);
  collapse(cleaned, "");
  return cleaned;
}

function collapse(map: Map<string, DeviceKey>, prefix: string): void {
  const names = [...map.keys()].filter((name) => prefix === "" || name.startsWith(`${prefix}.`));
  const devices = new Set(names.map((name) => map.get(name)!));
  if (devices.size === 1 && names.length > 1) {
    for (const name of names) map.delete(name);
    const [device] = devices;
    map.set(prefix, device!);
    return;
  }
  const depth = prefix === "" ? 1 : prefix.split(".").length + 1;
  const branches = new Set(
    [...map.keys()]
      .filter((name) => isUnder(name, prefix) && name.length > prefix.length)
      .map((name) => name.split(".").slice(0, depth).join(".")),
  );
  for (const branch of branches) if (branch !== prefix) collapse(map, branch);
}
