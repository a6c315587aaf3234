import { readdir, readFile, rm } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { writeTextAtomically } from "../../../formats/atomic-file.ts";
import { filesOf, type HashedFile, hashFiles, setAsideAllBut } from "../../../formats/checkpoint-folders.ts";

/** Beside a checkpoint's files: what each held when it was saved. */
export const HASHES_FILE = "pipelora_hashes.json";

/** What a killed save, a killed write or a killed look at the nodes' folders leaves. */
const LEFTOVERS = [
  /^\.checkpoint-\d+-[0-9a-f]{8}$/,
  /^\.pipelora-mark-[0-9a-f]{12}-(coordinator|\d+)$/,
  /^(adapter_model\.safetensors|adapter_config\.json|trainer_state\.json|last-step\.json|tokenizer[\w.-]*)\.\d+\.\d+\.tmp$/,
];

/** The checkpoints of one run in its output folder: only those that it saved or resumed are its own. */
export class CheckpointStore {
  readonly #outputDir: string;
  readonly #limit: number | null;
  /** Own checkpoints, in the order in which they were saved, whatever their numbers. */
  #own: string[] = [];

  constructor(outputDir: string, limit: number | null) {
    this.#outputDir = outputDir;
    this.#limit = limit;
  }

  /** Own checkpoints, the newest first. */
  get newestFirst(): readonly string[] {
    return [...this.#own].reverse();
  }

  /** A checkpoint that the run goes on from, and those before it, the oldest first. */
  adopt(paths: readonly string[]): void {
    this.#own = [...paths];
  }

  owns(path: string): boolean {
    return this.#own.includes(path);
  }

  /**
   * A checkpoint of this run was written. Deletes what the limit has no room for: the oldest of its own, but never the best or the
   * one just written; beside a best one that another run would end with, a limit of 1 keeps both, as the Trainer does. Returns
   * their names.
   */
  async saved(path: string, best: string | null = null): Promise<string[]> {
    this.#own = [...this.#own.filter((other) => other !== path), path];
    const keep = [path, ...(best !== null && this.owns(best) ? [best] : [])];
    return this.#limit === null ? [] : this.#drop(Math.max(this.#limit, new Set(keep).size), keep);
  }

  /** At the end of a run that loads the best checkpoint: with a limit of 1, only that one is kept. Returns the names of the deleted ones. */
  async finished(best: string): Promise<string[]> {
    return this.#limit === 1 && this.owns(best) ? this.#drop(1, [best]) : [];
  }

  /** Deletes the oldest of its own until `limit` are left, none of `keep`. */
  async #drop(limit: number, keep: readonly string[]): Promise<string[]> {
    const excess = Math.max(0, this.#own.length - limit);
    const old = this.#own.filter((path) => !keep.includes(path)).slice(0, excess);
    for (const path of old) await rm(path, { recursive: true, force: true });
    this.#own = this.#own.filter((path) => !old.includes(path));
    return old.map((path) => basename(path));
  }

  /** Names of its own that lie in its folder. */
  get names(): readonly string[] {
    return this.#own
      .filter((path) => resolve(dirname(path)) === resolve(this.#outputDir))
      .map((path) => basename(path));
  }

  /** Renames the checkpoints of the folder that are not this run's own. Returns their new names. */
  setAsideOthers(): Promise<string[]> {
    return setAsideAllBut(this.names, -1, this.#outputDir);
  }

  /** Clears what a killed process left, before anything is saved. */
  async clear(): Promise<void> {
    const names = await readdir(this.#outputDir).catch(() => [] as string[]);
    for (const name of names.filter((found) => LEFTOVERS.some((pattern) => pattern.test(found)))) {
      await rm(join(this.#outputDir, name), { recursive: true, force: true });
    }
  }
}

/** Notes every file's hash beside them. Part of a save, before the folder gets its name. */
export async function writeHashes(dir: string): Promise<void> {
  const files = await hashFiles(dir, await filesOf(dir));
  await writeTextAtomically(join(dir, HASHES_FILE), `${JSON.stringify({ files }, null, 2)}\n`);
}

/** Throws a plain Error that names the file whose bytes are not those that were saved. A checkpoint of other tools has no hashes. */
export async function checkHashes(dir: string): Promise<void> {
  const text = await readFile(join(dir, HASHES_FILE), "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return null;
    throw error;
  });
  if (text === null) return;
  const { files } = JSON.parse(text) as { files?: HashedFile[] };
  if (!Array.isArray(files)) throw new Error(`${HASHES_FILE} lists no files`);
  const names = files.map(({ name }) => basename(String(name)));
  const found = await hashFiles(dir, names);
  const changed = found.find(({ sha256 }, index) => sha256 !== files[index]!.sha256);
  if (changed !== undefined) throw new Error(`${changed.name} has changed since it was saved (its hash is another)`);
}
