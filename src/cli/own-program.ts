import { spawn } from "node:child_process";
import { join } from "node:path";
import { PipeloraError } from "../common/errors.ts";
import { PACKAGE_ROOT } from "../common/root.ts";

const COORDINATOR = join(PACKAGE_ROOT, "dist", "cli", "coordinator.js");

export interface Ended {
  readonly code: number;
  /** Empty where the output is shown. */
  readonly stdout: string;
  readonly stderr: string;
}

export interface OwnProgramOptions {
  /** true: its output goes where this program's output goes; false: it is collected. */
  readonly shown: boolean;
  readonly seconds?: number;
  readonly environment?: Readonly<Record<string, string>>;
}

/**
 * Runs `coordinator` in a child process, as a user would. What stops this process stops the child. Error: PL_INTERNAL if it can't be
 * started or exceeds its time.
 */
export async function runCoordinator(args: readonly string[], options: OwnProgramOptions): Promise<Ended> {
  const output = options.shown ? "inherit" : "pipe";
  const child = spawn(process.execPath, [COORDINATOR, ...args], {
    stdio: ["ignore", output, output],
    env: { ...process.env, ...options.environment },
    ...(options.seconds === undefined ? {} : { timeout: options.seconds * 1000, killSignal: "SIGKILL" as const }),
  });
  const forward = (signal: NodeJS.Signals) => child.kill(signal);
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, forward);
  let [stdout, stderr] = ["", ""];
  child.stdout?.on("data", (text: Buffer) => {
    stdout += text.toString();
  });
  child.stderr?.on("data", (text: Buffer) => {
    stderr += text.toString();
  });
  try {
    return await new Promise<Ended>((resolve, reject) => {
      child.on("error", (cause) =>
        reject(new PipeloraError("PL_INTERNAL", `${COORDINATOR} was not started: ${cause.message}`, { cause })),
      );
      child.on("close", (code, signal) => {
        if (code !== null) resolve({ code, stdout, stderr });
        else reject(new PipeloraError("PL_INTERNAL", `\`coordinator ${args[0]}\` was ended by ${signal}`));
      });
    });
  } finally {
    for (const signal of ["SIGINT", "SIGTERM"] as const) process.off(signal, forward);
  }
}
