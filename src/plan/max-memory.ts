import { PipeloraError } from "../common/errors.ts";
import type { DeviceKey, MaxMemory } from "./devices.ts";

/** accelerate's units: GiB is 2^30 and GB 10^9 bytes; with a lower-case b, bits ("8Gb" is 10^9 bytes). */
const UNITS: readonly (readonly [string, number])[] = [
  ["GIB", 2 ** 30],
  ["MIB", 2 ** 20],
  ["KIB", 2 ** 10],
  ["GB", 1e9],
  ["MB", 1e6],
  ["KB", 1e3],
];

/**
 * Bytes of a size as accelerate's convert_file_size_to_int reads it: a number is bytes, a string ends in GiB, MiB, KiB,
 * GB, MB or KB. Errors: PL_CONFIG_INVALID.
 */
export function parseSize(size: number | string, where = "A size"): number {
  if (typeof size === "number") {
    if (Number.isFinite(size) && size >= 0) return Math.floor(size);
    throw invalid(where, String(size));
  }
  const text = size.trim();
  const unit = UNITS.find(([suffix]) => text.toUpperCase().endsWith(suffix));
  const digits = unit === undefined ? text : text.slice(0, -unit[0].length);
  if (!/^\s*\d+(\.\d+)?\s*$/.test(digits)) throw invalid(where, `"${size}"`);
  if (unit === undefined) return Math.floor(Number(digits));
  const [suffix, bytes] = unit;
  const bits = suffix.length === 2 && text.endsWith("b");
  return Math.floor((Number(digits) * bytes) / (bits ? 8 : 1));
}

/**
 * max_memory as users of accelerate write it, e.g. '{"0": "10GiB", "cpu": "30GB"}' or the object itself: devices by
 * number, "cpu", "disk"; values as parseSize reads them. Ids come out ascending, then cpu and disk.
 * Errors: PL_CONFIG_INVALID.
 */
export function parseMaxMemory(value: string | Readonly<Record<string, number | string>>): MaxMemory {
  const entries = Object.entries(typeof value === "string" ? parseObject(value) : value);
  if (entries.length === 0) throw new PipeloraError("PL_CONFIG_INVALID", "max_memory names no device.", { hint: HINT });
  const budgets = entries.map(([key, size]): [DeviceKey, number] => {
    if (typeof size !== "number" && typeof size !== "string")
      throw invalid(`max_memory["${key}"]`, JSON.stringify(size));
    return [deviceKey(key), parseSize(size, `max_memory["${key}"]`)];
  });
  const order = (key: DeviceKey) => (typeof key === "number" ? key : Number.MAX_SAFE_INTEGER);
  const sorted = budgets.sort(([a], [b]) => order(a) - order(b) || String(a).localeCompare(String(b)));
  const map = new Map(sorted);
  if (map.size !== entries.length) {
    throw new PipeloraError("PL_CONFIG_INVALID", "max_memory names a device twice.", { hint: HINT });
  }
  return map;
}

const HINT = `Write it as '{"0": "10GiB", "1": "10GiB"}'.`;

function parseObject(json: string): Record<string, number | string> {
  let parsed: unknown;
  try {
    parsed = JSON.parse(json);
  } catch (error) {
    throw new PipeloraError("PL_CONFIG_INVALID", `max_memory is not JSON: ${(error as Error).message}`, {
      hint: HINT,
      cause: error,
    });
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
    throw new PipeloraError("PL_CONFIG_INVALID", `max_memory must be an object, not ${json.slice(0, 60)}.`, {
      hint: HINT,
    });
  }
  return parsed as Record<string, number | string>;
}

function deviceKey(key: string): DeviceKey {
  if (key === "cpu" || key === "disk") return key;
  const id = /^(?:cuda:)?(\d{1,6})$/.exec(key)?.[1];
  if (id !== undefined) return Number(id);
  throw new PipeloraError(
    "PL_CONFIG_INVALID",
    `max_memory names device "${key}"; expected a number, "cpu" or "disk".`,
    {
      hint: HINT,
    },
  );
}

function invalid(where: string, found: string): PipeloraError {
  return new PipeloraError("PL_CONFIG_INVALID", `${where} is ${found}; expected bytes or a size such as "10GiB".`, {
    hint: HINT,
  });
}
