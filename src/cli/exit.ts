import { type PipeloraError, toPipeloraError } from "../common/errors.ts";
import { exitCodeOf } from "../common/exit-codes.ts";

/** Runs a program's body and ends the process with its code; an error goes to stderr first. */
export async function runProgram(json: () => boolean, body: () => Promise<number>): Promise<never> {
  // A reader that goes away (`| head`) ends the program quietly.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => process.exit(error.code === "EPIPE" ? 0 : 1));
  let code: number;
  try {
    code = await body();
  } catch (thrown) {
    const error = toPipeloraError(thrown);
    process.stderr.write(json() ? `${JSON.stringify(errorValue(error))}\n` : `${errorText(error)}\n`);
    code = exitCodeOf(error);
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
