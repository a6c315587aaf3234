import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";

export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the built `coordinator` as a user would. */
export function coordinator(args: readonly string[], onOutput?: (text: string) => void): Promise<Outcome> {
  const child = startCoordinator(args);
  return outcome(child, onOutput);
}

export function startCoordinator(args: readonly string[], environment: Readonly<Record<string, string>> = {}) {
  return start("coordinator", args, environment);
}

/** Starts the built `worker` as whatever places it on a node would. */
export function startWorker(args: readonly string[], environment: Readonly<Record<string, string>> = {}) {
  return start("worker", args, environment);
}

function start(
  program: "coordinator" | "worker",
  args: readonly string[],
  environment: Readonly<Record<string, string>> = {},
) {
  return spawn(process.execPath, [join(PACKAGE_ROOT, "dist", "cli", `${program}.js`), ...args], {
    stdio: ["pipe", "pipe", "pipe"],
    env: { ...process.env, ...environment },
  });
}

export function outcome(
  child: ReturnType<typeof startCoordinator>,
  onOutput?: (text: string) => void,
): Promise<Outcome> {
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (chunk: Buffer) => {
    stdout += chunk.toString();
    onOutput?.(chunk.toString());
  });
  child.stderr.on("data", (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, stdout, stderr }));
  });
}

/** JSON events of `train --json`, by name. */
export function events(stdout: string, name: string): Record<string, unknown>[] {
  return stdout
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as Record<string, unknown>)
    .filter((event) => event["event"] === name);
}

export function readJson<T = Record<string, unknown>>(...parts: string[]): T {
  return JSON.parse(readFileSync(join(...parts), "utf8")) as T;
}

/** A folder for the test, removed after it. */
export function temporaryFolder(test: { after(fn: () => void): void }): string {
  const folder = mkdtempSync(join(tmpdir(), "pipelora-"));
  test.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}
