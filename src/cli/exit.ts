import { isatty } from "node:tty";
import { type PipeloraError, toPipeloraError } from "../common/errors.ts";
import { exitCodeOf } from "../common/exit-codes.ts";
import { sayLastWords } from "../common/last-words.ts";

/**
 * Node takes back that nohup ignores SIGHUP. Where neither input nor output is a terminal, a hangup is ignored; on a terminal it ends the
 * program as usual.
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
  // When the reader goes away (`| head`), only the output is lost. The work goes on, and the exit code is the work's.
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
  // Writes to a pipe are asynchronous: the process ends only when they are done.
  await Promise.all([flushed(process.stdout), flushed(process.stderr)]);
  process.exit(code);
}

/** The last resort for an error that nobody caught: prints its code and message, never a bare stack. Other processes are told first. */
async function endOf(thrown: unknown, json: boolean): Promise<never> {
  const code = tell(thrown, json);
  await sayLastWords(toPipeloraError(thrown));
  process.exit(code);
}

/** Prints the error and returns its exit code. */
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

/** Where a defect was thrown; null for errors whose message is enough. */
function causeOf({ code, cause, message }: PipeloraError): string | null {
  if (code !== "PL_INTERNAL") return null;
  return cause instanceof Error ? (cause.stack ?? cause.message) : String(cause ?? message);
}
