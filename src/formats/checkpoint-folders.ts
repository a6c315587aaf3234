import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readdir, rename, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { syncFolder } from "./atomic-file.ts";

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

/**
 * Renames the checkpoints of a folder, except those named in `own` and those of steps up to `upTo`. A later resume then can't mistake them
 * for checkpoints of the current run. Returns their new names.
 */
export async function setAsideAllBut(own: readonly string[], upTo: number, outputDir: string): Promise<string[]> {
  const moved: string[] = [];
  for (const { step, path } of await listCheckpoints(outputDir)) {
    if (step <= upTo || own.includes(basename(path))) continue;
    const name = await freeName(outputDir, `${basename(path)}.earlier`);
    await rename(path, join(outputDir, name));
    moved.push(name);
  }
  if (moved.length > 0) await syncFolder(outputDir);
  return moved;
}

async function freeName(dir: string, wanted: string): Promise<string> {
  const taken = new Set(await readdir(dir));
  let name = wanted;
  for (let number = 2; taken.has(name); number++) name = `${wanted}-${number}`;
  return name;
}
