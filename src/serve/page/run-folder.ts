import type { Dirent } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { FolderRun, JOURNAL_FILE, METRICS_FILE, STATE_FILE } from "./folder-run.ts";
import type { RunSource } from "./run-source.ts";

/** Depth to which runs are searched below the folder: a sweep's lie one below, sweeps of sweeps two. */
const DEPTH = 3;
const MOST_FOLDERS = 2_000;
/** More are no picture any more. */
const MOST_RUNS = 128;
/** Interval at which folders are searched again. */
const FRESH_MS = 3_000;
/** What a folder has that is a run's. */
const SIGNS: readonly string[] = [METRICS_FILE, JOURNAL_FILE, STATE_FILE];

export interface FoundRuns {
  readonly runs: readonly RunSource[];
  readonly leftOut: number;
}

/** The runs of a folder: itself, and those of the folders below it. */
export class RunFolder {
  readonly dir: string;
  readonly #live: readonly RunSource[];
  readonly #known = new Map<string, RunSource>();
  #found: FoundRuns = { runs: [], leftOut: 0 };
  #lookedAt = Number.NEGATIVE_INFINITY;
  #looking: Promise<void> | null = null;

  /** `live`: runs of this process; all others are read from files. */
  constructor(dir: string, live: readonly RunSource[] = []) {
    this.dir = dir;
    this.#live = live;
    for (const run of live) this.#known.set(run.id, run);
  }

  async list(): Promise<FoundRuns> {
    if (performance.now() - this.#lookedAt >= FRESH_MS) {
      this.#looking ??= this.#look().finally(() => {
        this.#looking = null;
        this.#lookedAt = performance.now();
      });
      await this.#looking;
    }
    return this.#found;
  }

  /** Looked up among names that were found, so no path of a client is ever opened. Undefined: unknown. */
  async find(id: string): Promise<RunSource | undefined> {
    await this.list();
    return this.#found.runs.find((run) => run.id === id);
  }

  async #look(): Promise<void> {
    const live = this.#live.map(({ id }) => id);
    const below = await runsBelow(this.dir);
    const ids = [...live, ...below.filter((id) => !live.includes(id))];
    const shown = ids.slice(0, Math.max(MOST_RUNS, live.length));
    for (const id of this.#known.keys()) if (!shown.includes(id)) this.#known.delete(id);
    for (const id of shown) {
      if (!this.#known.has(id)) this.#known.set(id, new FolderRun(id, join(this.dir, id)));
    }
    this.#found = { runs: shown.map((id) => this.#known.get(id)!), leftOut: ids.length - shown.length };
  }
}

/** Paths below `root`, "" for itself, sorted with numbers by value. */
async function runsBelow(root: string): Promise<string[]> {
  const found: string[] = [];
  let level = [""];
  let looked = 0;
  for (let depth = 0; depth < DEPTH && level.length > 0; depth++) {
    const below: string[] = [];
    for (const id of level) {
      if (looked++ >= MOST_FOLDERS) break;
      const entries = await readdir(join(root, id), { withFileTypes: true }).catch((): Dirent[] => []);
      if (entries.some((entry) => entry.isFile() && SIGNS.includes(entry.name))) found.push(id);
      // Links are not followed: they lead anywhere.
      const folders = entries.filter((entry) => entry.isDirectory() && !/^\.|^checkpoint-\d+/.test(entry.name));
      below.push(...folders.map(({ name }) => (id === "" ? name : `${id}/${name}`)));
    }
    level = below;
  }
  return found.sort(new Intl.Collator("en", { numeric: true }).compare);
}
