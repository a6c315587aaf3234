import { startCoordinator } from "./cli.ts";

export interface RunningServer {
  readonly url: string;
  readonly pid: number;
  readonly log: () => string;
  /** The exit code. */
  readonly ended: Promise<number | null>;
  /** Resolves with the exit code. */
  stop(signal?: NodeJS.Signals): Promise<number | null>;
}

/** `coordinator serve` on a port of its own, once it listens. */
export async function startServer(
  args: readonly string[],
  environment: Readonly<Record<string, string>> = {},
): Promise<RunningServer> {
  const child = startCoordinator(["serve", "--http", "127.0.0.1:0", "--json", ...args], environment);
  let log = "";
  child.stderr.on("data", (chunk: Buffer) => {
    log += chunk.toString();
  });
  const ended = new Promise<number | null>((resolve) => child.on("close", resolve));
  const url = await new Promise<string>((resolve, reject) => {
    let out = "";
    child.stdout.on("data", (chunk: Buffer) => {
      out += chunk.toString();
      if (out.includes("\n")) resolve((JSON.parse(out.split("\n")[0]!) as { url: string }).url);
    });
    ended.then((code) => reject(new Error(`serve ended with ${code}: ${log}`)));
  });
  return {
    url,
    pid: child.pid!,
    log: () => log,
    ended,
    stop: (signal = "SIGTERM") => {
      child.kill(signal);
      return ended;
    },
  };
}
