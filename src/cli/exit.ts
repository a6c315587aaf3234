import { isatty } from "node:tty";
import { type PipeloraError, toPipeloraError } from "../common/errors.ts";
import { exitCodeOf } from "../common/exit-codes.ts";
import { sayLastWords } from "../common/last-words.ts";

/**
 * Node takes back that nohup ignores SIGHUP. A program whose output and input are no terminal does not end with one, so a
 * hangup means nothing to it; on a terminal it ends the program, as everywhere.
 */
function outliveTerminal(): void {
  if (![0, 1, 2].some((descriptor) => isatty(descriptor))) process.on("SIGHUP", () => {});
}

/** Runs a program's body and ends the process with its code; an error goes to stderr first. */
export async function runProgram(json: () => boolean, body: () => Promise<number>): Promise<never> {
  let ending: Promise<never> | null = null;
  const lastResort = (thrown: unknown) => {
    ending ??= endOf(thrown, json());
  };
  // A reader that goes away (`| head`) takes its output with it, not the work: the exit code stays that of the work.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") lastResort(error);
  });
  process.stderr.on("error", () => {});
  outliveTerminal();
  process.on("unhandledRejection", lastResort);
  process.on("uncaughtException", lastResort);
  let code: number;
  try {
    code = await body();
  } catch (thrown) {
    // What fails after a defect fails for it.
    code = ending === null ? tell(thrown, json()) : await ending;
  }
  if (ending !== null) await ending;
  // Writes to a pipe are asynchronous: what is still on its way must not be cut off.
  await Promise.all([flushed(process.stdout), flushed(process.stderr)]);
  process.exit(code);
}

/** The last resort for what nobody caught: its code and message, never a bare stack. Others hear of it first. */
async function endOf(thrown: unknown, json: boolean): Promise<never> {
  const code = tell(thrown, json);
  await sayLastWords(toPipeloraError(thrown));
  process.exit(code);
}

/** Tells the error, and returns the exit code that it means. */
function tell(thrown: unknown, json: boolean): number {
  const error = toPipeloraError(thrown);
  process.stderr.write(json ? `${JSON.stringify(errorValue(error))}\n` : `${errorText(error)}\n`);
  return exitCodeOf(error);
}

function flushed(stream: NodeJS.WriteStream): Promise<void> {
  return new Promise((resolve) => {
    if (stream.destroyed) return resolve();
    stream.write("", () => resolve());
  });
}

function errorText(error: PipeloraError): string {
  const lines = [`${error.code}: ${error.message}`];
  if (error.hint !== undefined) lines.push(error.hint);
  const cause = causeOf(error);
  if (cause !== null) lines.push(cause);
  return lines.join("\n");
}

function errorValue(error: PipeloraError): object {
  const cause = causeOf(error);
  const value = { code: error.code, message: error.message, hint: error.hint ?? null };
  return { error: cause === null ? value : { ...value, cause } };
}

/** Where a defect came from; null for errors whose message says all. */
function causeOf({ code, cause, message }: PipeloraError): string | null {
  if (code !== "PL_INTERNAL") return null;
  return cause instanceof Error ? (cause.stack ?? cause.message) : String(cause ?? message);
}
