import { startCoordinator } from "./cli.ts";

/** `coordinator ui` over a folder, until the test is over. Resolves with its URL once it answers. */
export async function startUi(t: { after(fn: () => unknown): void }, dir: string, ...flags: string[]): Promise<string> {
  const child = startCoordinator(["ui", dir, "--http", "127.0.0.1:0", "--json", ...flags]);
  const ended = new Promise((resolve) => child.on("close", resolve));
  t.after(async () => {
    child.kill("SIGTERM");
    await ended;
  });
  let stderr = "";
  child.stderr.on("data", (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  return new Promise((resolve, reject) => {
    child.stdout.once("data", (line: Buffer) => resolve((JSON.parse(line.toString()) as { url: string }).url));
    child.once("close", () => reject(new Error(`ui ended: ${stderr}`)));
  });
}
