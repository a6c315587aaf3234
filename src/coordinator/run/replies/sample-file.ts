import { appendFile, readFile } from "node:fs/promises";
import { join } from "node:path";
import { PipeloraError } from "../../../common/errors.ts";
import { writeTextAtomically } from "../../../formats/atomic-file.ts";

/** samples.jsonl of a run: what it said at each evaluation. */
export class SampleFile {
  readonly #path: string;

  constructor(outputDir: string) {
    this.#path = join(outputDir, "samples.jsonl");
  }

  /** Forgets what was said after a step that the run goes on from. Error: PL_OUTPUT_UNWRITABLE. */
  async goOnFrom(step: number): Promise<void> {
    const text = await readFile(this.#path, "utf8").catch(() => "");
    const kept = text.split("\n").filter((line) => stepOf(line) <= step);
    if (text !== "") await writeTextAtomically(this.#path, kept.map((line) => `${line}\n`).join(""));
  }

  /** Error: PL_OUTPUT_UNWRITABLE. */
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

/** Of a line that was cut off: never. */
function stepOf(line: string): number {
  try {
    return (JSON.parse(line) as { step: number }).step;
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}
