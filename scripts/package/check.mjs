// Installs the packages of build/packages where there is no compiler, no CMake and no oneDNN, and runs the demo there. Prints the seconds of each.
import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { fail, root, run } from "../lib.mjs";

/** All that is on the PATH there. npm runs its scripts with sh; workers are pinned with taskset. */
const PROGRAMS = ["node", "npm", "npx", "sh", "env", "uname", "taskset"];
/** What is covered by an empty file there, if this user may: libraries that the addon must not need. */
const HIDDEN = /^lib(dnnl|gomp|OpenCL)\b.*\.so/;

const packages = join(root, "build", "packages");
if (!existsSync(packages)) run("node", ["scripts/package/package.mjs"]);
const archives = readdirSync(packages).map((name) => join(packages, name));
if (archives.length !== 2)
  fail(`${packages} holds ${archives.length} packages, expected pipelora and its native engine: npm run package`);

const folder = mkdtempSync(join(tmpdir(), "pipelora-check-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
const bin = join(folder, "bin");
const home = join(folder, "home");
mkdirSync(bin);
mkdirSync(home);
for (const name of PROGRAMS) {
  const found = process.env.PATH.split(delimiter)
    .map((dir) => join(dir, name))
    .find((path) => existsSync(path));
  if (found === undefined) fail(`${name} is not on the PATH`);
  symlinkSync(realpathSync(found), join(bin, name));
}
writeFileSync(join(home, "package.json"), JSON.stringify({ private: true }));

const libraries = "/usr/lib/x86_64-linux-gnu";
const hidden = readdirSync(libraries)
  .filter((name) => HIDDEN.test(name))
  .map((name) => realpathSync(join(libraries, name)));
const hides = spawnSync("unshare", ["--mount", "true"]).status === 0;
process.stdout.write(
  hides
    ? `hidden: ${[...new Set(hidden)].join(", ") || "nothing to hide"}\n`
    : "libraries can't be hidden here: this user may not mount\n",
);

/** Runs a command there; returns its seconds. */
function there(title, ...command) {
  const covered = [...new Set(hidden)].map((path) => `mount --bind /dev/null ${path}`).join(" && ");
  const whole =
    hides && covered !== ""
      ? [
          "unshare",
          "--mount",
          "/bin/sh",
          "-c",
          `export PATH=/usr/bin:/bin:/sbin && ${covered} && export PATH=${bin} && exec "$@"`,
          "sh",
          ...command,
        ]
      : command;
  const started = Date.now();
  const environment = {
    ...process.env,
    PATH: hides ? `/usr/bin${delimiter}/bin` : bin,
    npm_config_cache: join(folder, "cache"),
    // So that the second install knows where in the cache everything is.
    npm_config_omit_lockfile_registry_resolved: "false",
    XDG_CACHE_HOME: join(folder, "xdg"),
  };
  const { status, signal } = spawnSync(whole[0], whole.slice(1), {
    cwd: home,
    env: environment,
    stdio: ["ignore", "inherit", "inherit"],
  });
  if (status !== 0) fail(`${title}: ${command.join(" ")} ended with ${status ?? signal}`);
  return (Date.now() - started) / 1000;
}

const install = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", ...archives];
const download = there("download", ...install);
rmSync(join(home, "node_modules"), { recursive: true });
const seconds = {
  "install with download": download,
  "install after download": there("install", "npm", "ci", "--no-audit", "--no-fund", "--loglevel=error", "--offline"),
  "npx pipelora demo": there("demo", "npx", "--no-install", "pipelora", "demo"),
  "npx pipelora doctor": there("doctor", "npx", "--no-install", "pipelora", "doctor"),
};
process.stdout.write("\n");
for (const [name, took] of Object.entries(seconds)) process.stdout.write(`${name}: ${took.toFixed(1)} s\n`);
const both = seconds["install after download"] + seconds["npx pipelora demo"];
if (both > 60) fail(`install and demo took ${both.toFixed(1)} s, expected under a minute`);
