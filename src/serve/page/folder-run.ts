import { readFile, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { listCheckpoints } from "../../formats/checkpoint-folders.ts";
import { fieldsOf } from "./fields.ts";
import { LineTail } from "./line-tail.ts";
import { RunRecord, settingRows } from "./run-record.ts";
import type { RunSource } from "./run-source.ts";

/** Files that a run leaves in its output folder, beside adapter and checkpoints. */
export const METRICS_FILE = "metrics.jsonl";
export const JOURNAL_FILE = "run.jsonl";
export const LAST_STEP_FILE = "last-step.json";
export const SAMPLES_FILE = "samples.jsonl";
export const STATE_FILE = "trainer_state.json";
const ARGS_FILE = "training_args.json";

/** Files are looked at again after so long. */
const FRESH_MS = 400;
/** A trainer_state.json of a hundred thousand log entries has 20 MB. */
const MOST_JSON_BYTES = 64 << 20;
/** A record that is made anew starts at a revision that no earlier one could have reached. */
const REVISIONS = 2 ** 32;

/** A run read from its files, finished or going on in another process. */
export class FolderRun implements RunSource {
  readonly id: string;
  readonly dir: string;
  readonly live = false;
  #record = new RunRecord();
  #files: Record<"metrics" | "journal" | "samples", LineTail>;
  #made = 0;
  #lastStepAt = 0;
  #looked = Number.NEGATIVE_INFINITY;
  #looking: Promise<void> | null = null;

  constructor(id: string, dir: string) {
    this.id = id;
    this.dir = dir;
    this.#files = this.#tails();
  }

  get record(): RunRecord {
    return this.#record;
  }

  /** Never rejects: an unreadable file counts as empty. */
  async refresh(): Promise<void> {
    if (performance.now() - this.#looked < FRESH_MS) return;
    this.#looking ??= this.#look().finally(() => {
      this.#looking = null;
      this.#looked = performance.now();
    });
    await this.#looking;
  }

  /** The other process can't be asked to record more often. */
  looked(): boolean {
    return false;
  }

  async #look(): Promise<void> {
    // Repeated steps were removed from the file, so what was read of them is outdated.
    for (let attempt = 0; attempt < 2 && !(await this.#readOn()); attempt++) this.#beginAnew();
    if (this.#record.columns.length === 0) await this.#readHistory();
    if (this.#record.settings.length === 0) await this.#readArgs();
  }

  async #readOn(): Promise<boolean> {
    const { metrics, journal, samples } = this.#files;
    await this.#readLastStep();
    const apply = (line: string) => this.#record.apply(parsed(line));
    // The order in which a run reports: its steps, the totals over them, how it ended.
    return (
      (await metrics.read(apply)) &&
      (await journal.read(apply)) &&
      (await samples.read((line) => this.#record.addReply(parsed(line))))
    );
  }

  #beginAnew(): void {
    this.#made++;
    this.#record = new RunRecord(this.#made * REVISIONS);
    this.#files = this.#tails();
    this.#lastStepAt = 0;
  }

  #tails(): Record<"metrics" | "journal" | "samples", LineTail> {
    const tail = (name: string) => new LineTail(join(this.dir, name));
    return { metrics: tail(METRICS_FILE), journal: tail(JOURNAL_FILE), samples: tail(SAMPLES_FILE) };
  }

  async #readLastStep(): Promise<void> {
    const path = join(this.dir, LAST_STEP_FILE);
    const { mtimeMs } = (await stat(path).catch(() => null)) ?? { mtimeMs: 0 };
    if (mtimeMs === this.#lastStepAt) return;
    this.#lastStepAt = mtimeMs;
    this.#record.apply(await jsonFile(path));
  }

  /** A run of another trainer, or of a version that wrote no metrics. */
  async #readHistory(): Promise<void> {
    const own = await jsonFile(join(this.dir, STATE_FILE));
    const newest = (await listCheckpoints(this.dir)).at(-1);
    const state = own ?? (newest === undefined ? null : await jsonFile(join(newest.path, STATE_FILE)));
    if (state === null) return;
    this.#record.addHistory(state);
    // The folder itself has a state once the run is done.
    if (own !== null) this.#record.apply({ event: "end" });
  }

  async #readArgs(): Promise<void> {
    const newest = (await listCheckpoints(this.dir)).at(-1);
    if (newest === undefined) return;
    const settings = settingRows(fieldsOf(await jsonFile(join(newest.path, ARGS_FILE))), null);
    if (settings.length > 0) this.#record.assume(settings);
  }
}

/** As people call it: the folder's last part. */
export function runName({ id, dir }: Pick<RunSource, "id" | "dir">): string {
  return id === "" ? basename(dir) : id;
}

/** null: missing, not JSON, or too large. */
export async function jsonFile(path: string): Promise<unknown> {
  const found = await stat(path).catch(() => null);
  if (found === null || !found.isFile() || found.size > MOST_JSON_BYTES) return null;
  return parsed(await readFile(path, "utf8").catch(() => ""));
}

function parsed(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return null;
  }
}
