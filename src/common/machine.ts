import { readFileSync } from "node:fs";
import { statfs } from "node:fs/promises";
import { freemem } from "node:os";
import { dirname } from "node:path";

/** Bytes of memory that a process may still take on this machine, or of what its container leaves it. */
export function freeMemory(): number {
  return Math.min(freemem(), process.availableMemory());
}

/** Bytes that may still be written below a folder, which need not exist yet. */
export async function freeDisk(dir: string): Promise<number> {
  for (let folder = dir; ; folder = dirname(folder)) {
    const found = await statfs(folder).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT" && folder !== dirname(folder)) return null;
      throw error;
    });
    if (found !== null) return found.bavail * found.bsize;
  }
}

/** Cores that the scheduler may give this process, by number: "0-3,8" in Linux's own words. */
export function allowedCores(): number[] {
  const list = /^Cpus_allowed_list:\s*(\S+)/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "";
  return list.split(",").flatMap((range) => {
    const [first, last] = range.split("-").map(Number);
    return Array.from({ length: (last ?? first!) - first! + 1 }, (_, index) => first! + index);
  });
}
