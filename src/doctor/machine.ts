import { readFile, statfs } from "node:fs/promises";
import { resolve } from "node:path";
import { allowedCores, freeDisk, freeMemory } from "../common/machine.ts";
import type { Capabilities } from "../engine/index.ts";
import { type Finding, ok, warn } from "./finding.ts";

const GIB = 1024 ** 3;
/** Below this nothing but toy models trains. */
const LITTLE_MEMORY = 2 * GIB;
const LITTLE_DISK = 2 * GIB;
/** A container's default size of /dev/shm. NCCL takes 4 to 10 MB of it for each pair of GPUs and each channel. */
const LITTLE_SHM = GIB;
/** Files that a rank may hold open: a connection or two to every other rank, the checkpoint's files, and a few dozen of Node's own. */
const FEW_FILES = 1024;
const FEW_TASKS = 512;

const gib = (bytes: number) => `${(bytes / GIB).toFixed(1)} GiB`;

export function processorFinding({ cpu }: Capabilities): Finding {
  const found = `${cpu.isa}${cpu.bf16 ? " with bfloat16 products" : ""}, ${allowedCores().length} cores for this process`;
  return ok("cpu", found);
}

export function memoryFinding(free: number = freeMemory()): Finding {
  return free >= LITTLE_MEMORY
    ? ok("memory", `${gib(free)} free`)
    : warn("memory", `${gib(free)} free`, "Free some, or raise the container's limit: only very small models fit.");
}

export async function diskFinding(dir: string): Promise<Finding> {
  const path = resolve(dir);
  const free = await freeDisk(path);
  const found = `${gib(free)} free at ${path}`;
  return free >= LITTLE_DISK
    ? ok("disk", found)
    : warn(
        "disk",
        found,
        "Free some, or save to another folder (--output-dir): a checkpoint has three times the adapter's bytes.",
      );
}

/** Only NCCL uses /dev/shm; the workers' own links use anonymous memory. */
export async function sharedMemoryFinding(gpus: number, dir = "/dev/shm"): Promise<Finding> {
  const size = await statfs(dir).then(
    ({ blocks, bsize }) => blocks * bsize,
    () => 0,
  );
  const found = size === 0 ? `${dir} is not there` : `${gib(size)} at ${dir}`;
  if (size >= LITTLE_SHM || gpus < 2) return ok("shm", found);
  return warn(
    "shm",
    found,
    "Give it 1 GiB or more (docker run --shm-size 1g; an emptyDir of medium Memory in a pod): NCCL needs it between GPUs.",
  );
}

/** /proc/self/limits: the soft limit of a row; null: none. */
export function softLimit(limits: string, row: string): number | null {
  const value = new RegExp(`^${row}\\s+(\\S+)`, "m").exec(limits)?.[1];
  return value === undefined || value === "unlimited" ? null : Number(value);
}

export async function limitsFinding(): Promise<Finding> {
  const text = await readFile("/proc/self/limits", "utf8").catch(() => "");
  const files = softLimit(text, "Max open files");
  const tasks = softLimit(text, "Max processes");
  const shown = (limit: number | null) => (limit === null ? "no limit" : String(limit));
  const found = `open files: ${shown(files)}, processes: ${shown(tasks)}`;
  if ((files ?? Infinity) < FEW_FILES) return warn("limits", found, `Raise open files: ulimit -n ${FEW_FILES * 4}.`);
  if ((tasks ?? Infinity) < FEW_TASKS) return warn("limits", found, `Raise processes: ulimit -u ${FEW_TASKS * 8}.`);
  return ok("limits", found);
}
