import { type FileHandle, open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { createInterface } from "node:readline";
import { PipeloraError } from "../../common/errors.ts";
import { isFile, makeFolder } from "../../common/files.ts";

/** Where an answer stands in the file under way. */
interface Span {
  readonly offset: number;
  readonly bytes: number;
}

/**
 * Answers to numbered prompts. They are written to NAME.part in the order in which they come; its first line identifies prompts, model and
 * settings. When all are there, they are put in order in NAME. A run after a killed one continues its NAME.part.
 */
export class AnswerFile {
  readonly #path: string;
  readonly #file: FileHandle;
  readonly #answers: Map<number, Span>;
  #end: number;
  #writing: Promise<void> = Promise.resolve();

  private constructor(path: string, file: FileHandle, answers: Map<number, Span>, end: number) {
    this.#path = path;
    this.#file = file;
    this.#answers = answers;
    this.#end = end;
  }

  /**
   * `identity`: of prompts, model and settings. Errors: PL_OUTPUT_UNWRITABLE, also where NAME is there already; PL_RESUME_INVALID where
   * NAME.part is another run's.
   */
  static async open(path: string, identity: string): Promise<AnswerFile> {
    if (await isFile(path)) {
      throw new PipeloraError("PL_OUTPUT_UNWRITABLE", `${path} is there already, with all its answers`, {
        hint: "Give --output another name, or remove the file.",
      });
    }
    const part = `${path}.part`;
    const header = `${JSON.stringify({ answers_to: identity })}\n`;
    try {
      await makeFolder(dirname(path));
      const file = await open(part, "a+");
      const { answers, end } = await readAnswers(file, part, header);
      // A line that was cut off by a kill goes.
      await file.truncate(end);
      if (end > 0) return new AnswerFile(path, file, answers, end);
      await file.write(header);
      return new AnswerFile(path, file, answers, Buffer.byteLength(header));
    } catch (error) {
      throw error instanceof PipeloraError ? error : unwritable(part, error);
    }
  }

  get count(): number {
    return this.#answers.size;
  }

  has(index: number): boolean {
    return this.#answers.has(index);
  }

  /** The answer is on disk when the promise resolves. Error: PL_OUTPUT_UNWRITABLE. */
  add(index: number, answer: Readonly<Record<string, unknown>>): Promise<void> {
    const line = Buffer.from(`${JSON.stringify({ index, ...answer })}\n`);
    this.#writing = this.#writing.then(async () => {
      await this.#file.write(line).catch((error: unknown) => {
        throw unwritable(`${this.#path}.part`, error);
      });
      this.#answers.set(index, { offset: this.#end, bytes: line.length });
      this.#end += line.length;
    });
    return this.#writing;
  }

  /** Called when all answers are there: writes them in the prompts' order to NAME. Error: PL_OUTPUT_UNWRITABLE. */
  async finish(): Promise<void> {
    const part = `${this.#path}.part`;
    const sorted = `${this.#path}.sorted`;
    try {
      await this.#writing;
      const out = await open(sorted, "w");
      try {
        for (const [, { offset, bytes }] of [...this.#answers].sort(([a], [b]) => a - b)) {
          const line = Buffer.alloc(bytes);
          await this.#file.read(line, 0, bytes, offset);
          await out.write(line);
        }
        await out.sync();
      } finally {
        await out.close();
      }
      await rename(sorted, this.#path);
      await this.close();
      await rm(part);
    } catch (error) {
      await rm(sorted, { force: true });
      throw error instanceof PipeloraError ? error : unwritable(this.#path, error);
    }
  }

  /** What was answered stays for the next run. */
  async close(): Promise<void> {
    await this.#writing.catch(() => {});
    await this.#file.close();
  }
}

async function readAnswers(
  file: FileHandle,
  part: string,
  header: string,
): Promise<{ answers: Map<number, Span>; end: number }> {
  const answers = new Map<number, Span>();
  const { size } = await file.stat();
  let offset = 0;
  const lines = createInterface({ input: file.createReadStream({ start: 0, autoClose: false }), crlfDelay: 0 });
  for await (const line of lines) {
    const bytes = Buffer.byteLength(line) + 1;
    if (offset + bytes > size) break;
    if (offset === 0 && `${line}\n` !== header) {
      throw new PipeloraError(
        "PL_RESUME_INVALID",
        `${part} holds answers to other prompts, or of another model or other settings`,
        {
          hint: "Give --output another name, or remove that file to begin anew.",
        },
      );
    }
    if (offset > 0) {
      const index = indexOf(line);
      if (index === null) break;
      answers.set(index, { offset, bytes });
    }
    offset += bytes;
  }
  return { answers, end: offset };
}

function indexOf(line: string): number | null {
  try {
    const { index } = JSON.parse(line) as { index?: unknown };
    return typeof index === "number" ? index : null;
  } catch {
    return null;
  }
}

function unwritable(path: string, error: unknown): PipeloraError {
  return new PipeloraError("PL_OUTPUT_UNWRITABLE", `${path} can't be written: ${(error as Error).message}`, {
    hint: "Check that the folder may be written and that its disk has room.",
    cause: error,
  });
}
