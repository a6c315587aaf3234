import { spawnSync } from "node:child_process";
import { closeSync, cpSync, mkdirSync, openSync, rmSync, statfsSync, writeSync } from "node:fs";
import { join } from "node:path";

const DISK_MIB = 64;
const FILLER = "filler";

/** None stays mounted when the driver ends. */
const mounted = new Set<SmallDisk>();
process.on("exit", () => {
  for (const disk of mounted) disk.unmount();
});

/** A file system of its own (tmpfs), which can be filled to the last byte. */
export class SmallDisk {
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
  }

  /** Null where this process may not mount. */
  static mount(path: string): SmallDisk | null {
    mkdirSync(path, { recursive: true });
    const { status } = spawnSync("mount", ["-t", "tmpfs", "-o", `size=${DISK_MIB}m`, "tmpfs", path]);
    if (status !== 0) return null;
    const disk = new SmallDisk(path);
    mounted.add(disk);
    return disk;
  }

  /** Leaves so many bytes free, to a page. */
  fill(left: number): void {
    const { bavail, bsize } = statfsSync(this.path);
    const file = openSync(join(this.path, FILLER), "w");
    const page = Buffer.alloc(bsize);
    try {
      for (let free = bavail * bsize - left; free > 0; free -= bsize) writeSync(file, page);
    } catch (error) {
      // The run wrote at the same time.
      if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
    } finally {
      closeSync(file);
    }
  }

  free(): void {
    rmSync(join(this.path, FILLER), { force: true });
  }

  /** `keep`: where its files are copied to; null: nowhere. */
  unmount(keep: string | null = null): void {
    mounted.delete(this);
    this.free();
    if (keep !== null) cpSync(this.path, keep, { recursive: true });
    // Lazily: a process that is on its way out may still hold a file.
    spawnSync("umount", ["-l", this.path]);
  }
}

/** Whether this process can mount, alone or in a user and mount namespace of its own. */
export function mounting(): "here" | "in a namespace" | "not at all" {
  const works = (command: string, ...args: string[]) => spawnSync(command, args).status === 0;
  const attempt = "d=$(mktemp -d) && mount -t tmpfs tmpfs $d && umount $d; s=$?; rmdir $d; exit $s";
  if (works("sh", "-c", attempt)) return "here";
  return works("unshare", "-rm", "sh", "-c", attempt) ? "in a namespace" : "not at all";
}
