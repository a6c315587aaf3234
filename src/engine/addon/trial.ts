import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, statSync, writeFileSync } from "node:fs";
import { cpus, homedir, release } from "node:os";
import { join } from "node:path";
import { PACKAGE_VERSION } from "../../common/root.ts";

const SECONDS = 60;

/**
 * The child's program. Loading finds a wrong ABI and missing symbols; the product finds an instruction that this processor lacks. Both may
 * end the process, so it is a child. Plain JavaScript, because it runs without this program's modules.
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
 * Tries an addon in a child process: does it load here, is it of this version, does it compute correctly? Returns why not; null: it does.
 * Success is remembered for this machine (in $XDG_CACHE_HOME/pipelora, else ~/.cache/pipelora), failure is not.
 */
export function misfit(path: string): string | null {
  const mark = markOf(path);
  if (existsSync(mark)) return null;
  const child = spawnSync(process.execPath, ["-e", TRIAL, path, PACKAGE_VERSION], {
    encoding: "utf8",
    timeout: SECONDS * 1000,
    // Options of this process (a loader, an inspector) are not passed to the child.
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

/** The file whose presence means "this addon fits this machine". Its name depends on addon, Node, kernel and processor. */
function markOf(path: string): string {
  const { size, mtimeMs } = statSync(path);
  const machine = [process.versions.modules, process.arch, release(), cpus()[0]?.model];
  const hash = createHash("sha256").update(JSON.stringify([path, size, mtimeMs, PACKAGE_VERSION, ...machine]));
  const cache = process.env["XDG_CACHE_HOME"] || join(homedir(), ".cache");
  return join(cache, "pipelora", `addon-${hash.digest("hex").slice(0, 24)}`);
}

/** Where the cache can't be written, every process tries the addon itself. */
function remember(mark: string): void {
  try {
    mkdirSync(join(mark, ".."), { recursive: true });
    writeFileSync(mark, "");
  } catch {}
}
