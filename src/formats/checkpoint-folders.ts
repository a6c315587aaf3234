import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";

/** Checkpoints of a folder, oldest first. */
export async function listCheckpoints(outputDir: string): Promise<{ step: number; path: string }[]> {
  const names = await readdir(outputDir).catch(() => [] as string[]);
  return names
    .map((name) => ({ step: Number(/^checkpoint-(\d+)$/.exec(name)?.[1] ?? Number.NaN), path: join(outputDir, name) }))
    .filter(({ step }) => Number.isInteger(step))
    .sort((a, b) => a.step - b.step);
}

export interface HashedFile {
  readonly name: string;
  /** Hexadecimal. */
  readonly sha256: string;
  readonly size: number;
}

/** Name, hash and size of files as they lie on the disk; in order. */
export async function hashFiles(dir: string, names: readonly string[]): Promise<HashedFile[]> {
  const hashed: HashedFile[] = [];
  for (const name of names) {
    const hash = createHash("sha256");
    await pipeline(createReadStream(join(dir, name)), hash);
    hashed.push({ name, sha256: hash.digest("hex"), size: (await stat(join(dir, name))).size });
  }
  return hashed;
}

/** Plain files of a folder, sorted. */
export async function filesOf(dir: string): Promise<string[]> {
  const entries = await readdir(dir, { withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map(({ name }) => name)
    .sort();
}
