import { readFileSync } from "node:fs";
import { statfs } from "node:fs/promises";
import { freemem } from "node:os";
import { dirname } from "node:path";

/** Bytes of memory that a process may still allocate on this machine, or within its container's limit. */
export function freeMemory(): number {
  return Math.min(freemem(), process.availableMemory());
}

/** Bytes that can still be written below a folder. The folder need not exist yet. */
export async function freeDisk(dir: string): Promise<number> {
  for (let folder = dir; ; folder = dirname(folder)) {
    const found = await statfs(folder).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT" && folder !== dirname(folder)) return null;
      throw error;
    });
    if (found !== null) return found.bavail * found.bsize;
  }
}

/** Numbers of the cores that the scheduler may give this process. Linux writes them as "0-3,8". */
export function allowedCores(): number[] {
  const list = /^Cpus_allowed_list:\s*(\S+)/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "";
  return list.split(",").flatMap((range) => {
    const [first, last] = range.split("-").map(Number);
    return Array.from({ length: (last ?? first!) - first! + 1 }, (_, index) => first! + index);
  });
}
