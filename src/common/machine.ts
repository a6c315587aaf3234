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
