import { readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { PipeloraError } from "../common/errors.ts";
import { isFile, makeFolder, readJsonFile } from "../common/files.ts";
import { syncFolder, writeTextAtomically } from "./atomic-file.ts";

const STAGE = ".staged";
const STATE = "state.json";
const MAX_STATE_BYTES = 1 << 20;
const stateSchema = z.object({
  key: z.string(),
  /** The files that are removed and those that are put in place, once all are written; null: still being written. */
  placing: z.object({ removed: z.array(z.string()), files: z.array(z.string()) }).nullable(),
});
type State = z.infer<typeof stateSchema>;

/**
 * Files that are put into a folder together once all are written. They are written into a folder below it; after a kill, the next process
 * continues with those that are complete. `key` identifies what the files are made from: files with another key are deleted.
 */
export class StagedFolder {
  readonly #dir: string;
  readonly #key: string;

  private constructor(dir: string, key: string) {
    this.#dir = dir;
    this.#key = key;
  }

  /** Where files are written; each must be whole as soon as it has its name. */
  get stage(): string {
    return join(this.#dir, STAGE);
  }

  static async open(dir: string, key: string): Promise<StagedFolder> {
    const folder = new StagedFolder(dir, key);
    const state = await readState(dir);
    if (state?.key !== key) {
      await rm(folder.stage, { recursive: true, force: true });
      await makeFolder(folder.stage);
      await folder.#write({ key, placing: null });
    }
    return folder;
  }

  /**
   * Completes what a killed process began while it put files in place, if it had this `key`. Returns the files' names; null: nothing to
   * complete. Error: PL_OUTPUT_UNWRITABLE where files with another key wait: the folder is incomplete.
   */
  static async finish(dir: string, isOwn: (key: string) => boolean): Promise<string[] | null> {
    const state = await readState(dir);
    if (state === null || state.placing === null) return null;
    if (!isOwn(state.key)) {
      throw new PipeloraError(
        "PL_OUTPUT_UNWRITABLE",
        `${dir} holds a part of files that another command was placing.`,
        {
          hint: "Run that command again: it ends what it began.",
        },
      );
    }
    return new StagedFolder(dir, state.key).#place(state.placing);
  }

  /** Names of whole files. */
  async written(): Promise<Set<string>> {
    return new Set((await readdir(this.stage)).filter((name) => name !== STATE && !name.endsWith(".tmp")));
  }

  /**
   * Moves all files up, `last` at the end, after deleting `removed`. From here on this can only be completed, now or by a later process.
   */
  async place(removed: readonly string[], last: readonly string[]): Promise<string[]> {
    const names = [...(await this.written())].sort();
    const files = [...names.filter((name) => !last.includes(name)), ...last.filter((name) => names.includes(name))];
    const placing = { removed: removed.filter((name) => !files.includes(name)), files };
    await this.#write({ key: this.#key, placing });
    return this.#place(placing);
  }

  async #place({ removed, files }: NonNullable<State["placing"]>): Promise<string[]> {
    try {
      for (const name of removed) await rm(join(this.#dir, name), { force: true });
      // The last files mark the folder as complete, so old ones must not lie beside new files.
      for (const name of files)
        if (await isFile(join(this.stage, name))) await rename(join(this.stage, name), join(this.#dir, name));
      await syncFolder(this.#dir);
      await rm(this.stage, { recursive: true, force: true });
      return files;
    } catch (cause) {
      throw new PipeloraError("PL_OUTPUT_UNWRITABLE", `${this.#dir}: ${(cause as Error).message}`, {
        hint: "Run the command again: it goes on with what is written.",
        cause,
      });
    }
  }

  #write(state: State): Promise<void> {
    return writeTextAtomically(join(this.stage, STATE), `${JSON.stringify(state)}\n`);
  }
}

async function readState(dir: string): Promise<State | null> {
  const path = join(dir, STAGE, STATE);
  if (!(await isFile(path))) return null;
  try {
    return stateSchema.parse(await readJsonFile(path, MAX_STATE_BYTES));
  } catch {
    return null;
  }
}
