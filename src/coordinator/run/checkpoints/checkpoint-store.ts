import { readdir, readFile, rm } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { writeTextAtomically } from "../../../formats/atomic-file.ts";
import { filesOf, type HashedFile, hashFiles, setAsideAllBut } from "../../../formats/checkpoint-folders.ts";

/** The file with the hash of each of a checkpoint's files, as saved. */
export const HASHES_FILE = "pipelora_hashes.json";

/** Names that are left when a save, a write or a look at the nodes' folders is killed. */
const LEFTOVERS = [
  /^\.checkpoint-\d+-[0-9a-f]{8}$/,
  /^\.pipelora-mark-[0-9a-f]{12}-(coordinator|\d+)$/,
  /^(adapter_model\.safetensors|adapter_config\.json|trainer_state\.json|last-step\.json|tokenizer[\w.-]*)\.\d+\.\d+\.tmp$/,
];

/** One run's checkpoints in its output folder. Only those that the run saved or resumed are its own. */
export class CheckpointStore {
  readonly #outputDir: string;
  readonly #limit: number | null;
  /** Own checkpoints in the order in which they were saved, which need not be that of their numbers. */
  #own: string[] = [];

  constructor(outputDir: string, limit: number | null) {
    this.#outputDir = outputDir;
    this.#limit = limit;
  }

  /** Own checkpoints, the last saved first. */
  get newestFirst(): readonly string[] {
    return [...this.#own].reverse();
  }

  /** Makes these the run's own: the checkpoint that it resumes and those before it, oldest first. */
  adopt(paths: readonly string[]): void {
    this.#own = [...paths];
  }

  owns(path: string): boolean {
    return this.#own.includes(path);
  }

  /**
   * Adds a checkpoint that was just written, and deletes the oldest own ones beyond the limit. The best and the one just written are never
   * deleted: with a limit of 1 there may be two, as in the Trainer. Returns the names of deleted ones.
   */
  async saved(path: string, best: string | null = null): Promise<string[]> {
    this.#own = [...this.#own.filter((other) => other !== path), path];
    const keep = [path, ...(best !== null && this.owns(best) ? [best] : [])];
    return this.#limit === null ? [] : this.#drop(Math.max(this.#limit, new Set(keep).size), keep);
  }

  /** For the end of a run that loads the best checkpoint: a limit of 1 then keeps only that one. Returns the names of deleted ones. */
  async finished(best: string): Promise<string[]> {
    return this.#limit === 1 && this.owns(best) ? this.#drop(1, [best]) : [];
  }

  /** Deletes the oldest own checkpoints until `limit` are left, except those in `keep`. */
  async #drop(limit: number, keep: readonly string[]): Promise<string[]> {
    const excess = Math.max(0, this.#own.length - limit);
    const old = this.#own.filter((path) => !keep.includes(path)).slice(0, excess);
    for (const path of old) await rm(path, { recursive: true, force: true });
    this.#own = this.#own.filter((path) => !old.includes(path));
    return old.map((path) => basename(path));
  }

  /** Names of own checkpoints that are in the output folder. */
  get names(): readonly string[] {
    return this.#own
      .filter((path) => resolve(dirname(path)) === resolve(this.#outputDir))
      .map((path) => basename(path));
  }

  /** Renames checkpoints in the folder that are not this run's own. Returns the new names. */
  setAsideOthers(): Promise<string[]> {
    return setAsideAllBut(this.names, -1, this.#outputDir);
  }

  /** Deletes what a killed process left. Call it before anything is saved. */
  async clear(): Promise<void> {
    const names = await readdir(this.#outputDir).catch(() => [] as string[]);
    for (const name of names.filter((found) => LEFTOVERS.some((pattern) => pattern.test(found)))) {
      await rm(join(this.#outputDir, name), { recursive: true, force: true });
    }
  }
}

/** Writes the file with every file's hash. It is part of a save, before the folder gets its name. */
export async function writeHashes(dir: string): Promise<void> {
  const files = await hashFiles(dir, await filesOf(dir));
  await writeTextAtomically(join(dir, HASHES_FILE), `${JSON.stringify({ files }, null, 2)}\n`);
}

/** Throws a plain Error that names a file whose bytes differ from what was saved. Checkpoints of other tools have no hashes and pass. */
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
