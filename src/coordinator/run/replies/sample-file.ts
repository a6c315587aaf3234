import { appendFile, readFile } from "node:fs/promises";
import { join } from "node:path";
import { PipeloraError } from "../../../common/errors.ts";
import { writeTextAtomically } from "../../../formats/atomic-file.ts";

/** A run's samples.jsonl: its replies at each evaluation. */
export class SampleFile {
  readonly #path: string;

  constructor(outputDir: string) {
    this.#path = join(outputDir, "samples.jsonl");
  }

  /** Removes replies from after the step that the run resumes from. Errors: PL_OUTPUT_UNWRITABLE. */
  async goOnFrom(step: number): Promise<void> {
    const text = await readFile(this.#path, "utf8").catch(() => "");
    const kept = text.split("\n").filter((line) => stepOf(line) <= step);
    if (text !== "") await writeTextAtomically(this.#path, kept.map((line) => `${line}\n`).join(""));
  }

  /** Appends rows. Errors: PL_OUTPUT_UNWRITABLE. */
  async add(rows: readonly object[]): Promise<void> {
    try {
      await appendFile(this.#path, rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
    } catch (cause) {
      throw new PipeloraError("PL_OUTPUT_UNWRITABLE", `${this.#path} can't be written: ${(cause as Error).message}`, {
        cause,
      });
    }
  }
}

/** The step of a line. An incomplete line counts as after every step, so it is removed. */
function stepOf(line: string): number {
  try {
    return (JSON.parse(line) as { step: number }).step;
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}
