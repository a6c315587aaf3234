import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, statSync, writeFileSync } from "node:fs";
import { cpus, homedir, release } from "node:os";
import { join } from "node:path";
import { PACKAGE_VERSION } from "../../common/root.ts";

const SECONDS = 60;

/**
 * What the child runs: loading finds a wrong ABI and missing symbols, the product an instruction that this processor lacks. Both may
 * end the process, which is why it is a process of its own. JavaScript as it is, for it runs without this program's modules.
 */
const TRIAL = `
const [, path, version] = process.argv;
const addon = require(path);
const built = addon.capabilities().version;
if (built !== version) throw new Error("it is of version " + built + ", expected " + version);
const inner = 37, a = new Float32Array(5 * inner), b = new Float32Array(3 * inner);
for (let i = 0; i < a.length; i++) a[i] = (i % 7) - 3;
for (let i = 0; i < b.length; i++) b[i] = (i % 5) - 2;
const c = addon.product(a, b, inner);
for (let row = 0; row < 5; row++)
  for (let column = 0; column < 3; column++) {
    let sum = 0;
    for (let k = 0; k < inner; k++) sum += a[row * inner + k] * b[column * inner + k];
    if (c[row * 3 + column] !== sum) throw new Error("a product is " + c[row * 3 + column] + ", expected " + sum);
  }
`;

/**
 * Tries an addon in a child process: does it load here, is it of this version, does it compute right? Returns why not; null: it does.
 * That an addon fits is remembered for this machine (in $XDG_CACHE_HOME/pipelora, else ~/.cache/pipelora), that it does not is not.
 */
export function misfit(path: string): string | null {
  const mark = markOf(path);
  if (existsSync(mark)) return null;
  const child = spawnSync(process.execPath, ["-e", TRIAL, path, PACKAGE_VERSION], {
    encoding: "utf8",
    timeout: SECONDS * 1000,
    // Options for this process (a loader, an inspector) are not the child's.
    env: { ...process.env, NODE_OPTIONS: "" },
  });
  const reason = reasonOf(child)?.replace(`${path}: `, "") ?? null;
  if (reason === null) remember(mark);
  return reason;
}

function reasonOf(child: ReturnType<typeof spawnSync>): string | null {
  if (child.error !== undefined) return child.error.message;
  if (child.signal !== null) return `the process that tried it was ended by ${child.signal}`;
  if (child.status === 0) return null;
  const message = /^(?:\w*Error(?: \[\w+\])?): (.+)$/m.exec(String(child.stderr))?.[1];
  return message ?? `the process that tried it ended with code ${child.status}`;
}

/** A file that stands for "this addon fits this machine": another addon, Node, kernel or processor has another. */
function markOf(path: string): string {
  const { size, mtimeMs } = statSync(path);
  const machine = [process.versions.modules, process.arch, release(), cpus()[0]?.model];
  const hash = createHash("sha256").update(JSON.stringify([path, size, mtimeMs, PACKAGE_VERSION, ...machine]));
  const cache = process.env["XDG_CACHE_HOME"] || join(homedir(), ".cache");
  return join(cache, "pipelora", `addon-${hash.digest("hex").slice(0, 24)}`);
}

/** Where nothing can be written, each process tries for itself. */
function remember(mark: string): void {
  try {
    mkdirSync(join(mark, ".."), { recursive: true });
    writeFileSync(mark, "");
  } catch {}
}
