import { rm } from "node:fs/promises";
import { join } from "node:path";
import { dtypeBytes, elementCount } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import { writeTextAtomically } from "./atomic-file.ts";
import { INDEX_FILE, SINGLE_FILE } from "./checkpoint.ts";
import { openSafetensors, type TensorGroup, type TensorToWrite, writeSafetensors } from "./safetensors.ts";

const UNITS: Readonly<Record<string, number>> = {
  B: 1,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  KIB: 2 ** 10,
  MIB: 2 ** 20,
  GIB: 2 ** 30,
};

/** "5GB" (10^9 bytes, as transformers reads it), "200MiB", or a number of bytes. Error: PL_CONFIG_INVALID. */
export function parseShardSize(size: string | number): number {
  const match = /^(\d+(?:\.\d+)?)\s*([KMG]?i?B)?$/i.exec(String(size).trim());
  const bytes = match === null ? 0 : Math.floor(Number(match[1]) * UNITS[(match[2] ?? "B").toUpperCase()]!);
  if (bytes < 1) {
    throw new PipeloraError("PL_CONFIG_INVALID", `max_shard_size: expected a size such as 5GB, got "${size}".`, {
      hint: "Write a number and one of B, KB, MB, GB, KiB, MiB, GiB.",
    });
  }
  return bytes;
}

const bytesOf = (item: TensorToWrite | TensorGroup) =>
  ("tensors" in item ? item.tensors : [item]).reduce(
    (sum, tensor) =>
      sum + ("mostBytes" in tensor ? tensor.mostBytes : elementCount(tensor.shape) * dtypeBytes(tensor.dtype)),
    0,
  );

const namesOf = (item: TensorToWrite | TensorGroup) =>
  "tensors" in item ? item.tensors.map(({ name }) => name) : [item.name];

/** Fills shards in the given order. A tensor larger than a shard gets a shard of its own. */
function splitIntoShards(
  items: readonly (TensorToWrite | TensorGroup)[],
  maxShardBytes: number,
): (TensorToWrite | TensorGroup)[][] {
  const shards: (TensorToWrite | TensorGroup)[][] = [];
  let room = 0;
  for (const item of items) {
    const bytes = bytesOf(item);
    const current = shards.at(-1);
    if (current === undefined || bytes > room) {
      shards.push([item]);
      room = maxShardBytes - bytes;
    } else {
      current.push(item);
      room -= bytes;
    }
  }
  return shards;
}

export interface CheckpointExtras {
  /** Names of shards that exist already, written from the same items: they are kept. */
  readonly whole?: ReadonlySet<string>;
  /** Metadata of each file's header; absent: transformers' own. */
  readonly metadata?: Readonly<Record<string, string>>;
}

async function tensorBytes(path: string): Promise<number> {
  const { tensors } = await openSafetensors(path);
  return [...tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0);
}

/**
 * Writes weights as transformers does: one model.safetensors where they fit, else model-00001-of-0000N.safetensors and an
 * index, which is written last: a folder without it is no checkpoint. Returns the names of the files written.
 */
export async function writeCheckpoint(
  dir: string,
  items: readonly (TensorToWrite | TensorGroup)[],
  maxShardSize: string | number = "5GB",
  { whole = new Set(), metadata }: CheckpointExtras = {},
): Promise<string[]> {
  const shards = splitIntoShards(items, parseShardSize(maxShardSize));
  const single = shards.length <= 1;
  const files = single
    ? [SINGLE_FILE]
    : shards.map((_, i) => `model-${padded(i + 1)}-of-${padded(shards.length)}.safetensors`);
  for (const stale of single ? [INDEX_FILE] : [INDEX_FILE, SINGLE_FILE]) await rm(join(dir, stale), { force: true });
  let total = 0;
  for (const [i, file] of files.entries()) {
    const path = join(dir, file);
    total += whole.has(file) ? await tensorBytes(path) : await writeSafetensors(path, shards[i] ?? [], metadata);
  }
  if (single) return files;

  const weightMap = shards.flatMap((shard, i) => shard.flatMap(namesOf).map((name) => [name, files[i]!] as const));
  const index = {
    metadata: { total_size: total },
    weight_map: Object.fromEntries(weightMap.sort(([a], [b]) => (a < b ? -1 : 1))),
  };
  await writeTextAtomically(join(dir, INDEX_FILE), `${JSON.stringify(index, null, 2)}\n`);
  return [...files, INDEX_FILE];
}

const padded = (count: number) => String(count).padStart(5, "0");
