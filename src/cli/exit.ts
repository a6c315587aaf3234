import { type PipeloraError, toPipeloraError } from "../common/errors.ts";

/** Codes of the shell: 128 + the signal's number. */
const INTERRUPTED = 130;

/** Runs a program's body and ends the process: 0, 1 with the error on stderr, 130 after Ctrl-C. */
export async function runProgram(json: () => boolean, body: () => Promise<number>): Promise<never> {
  // A reader that goes away (`| head`) ends the program quietly.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => process.exit(error.code === "EPIPE" ? 0 : 1));
  let code: number;
  try {
    code = await body();
  } catch (thrown) {
    const error = toPipeloraError(thrown);
    process.stderr.write(json() ? `${JSON.stringify(errorValue(error))}\n` : `${errorText(error)}\n`);
    code = error.code === "PL_INTERRUPTED" ? INTERRUPTED : 1;
  }
  // Writes to a pipe are asynchronous: what is still on its way must not be cut off.
  await Promise.all([flushed(process.stdout), flushed(process.stderr)]);
  process.exit(code);
}

function flushed(stream: NodeJS.WriteStream): Promise<void> {
  return new Promise((resolve) => stream.write("", () => resolve()));
}

function errorText(error: PipeloraError): string {
  const lines = [`${error.code}: ${error.message}`];
  if (error.hint !== undefined) lines.push(error.hint);
  if (error.code === "PL_INTERNAL" && error.cause instanceof Error) lines.push(error.cause.stack ?? "");
  return lines.join("\n");
}

function errorValue(error: PipeloraError): object {
  return { error: { code: error.code, message: error.message, hint: error.hint ?? null } };
}
