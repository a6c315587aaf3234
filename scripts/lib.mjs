// Shared by the scripts: plain Node, nothing to install first.
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** Runs a command in the repository, its output shown; exits with its code if it fails. */
export function run(command, args, options = {}) {
  const result = spawnSync(command, args, { cwd: root, stdio: "inherit", ...options });
  if (result.error) fail(`${command} could not be started: ${result.error.message}`);
  if (result.status !== 0) process.exit(result.status ?? 1);
}

export function fail(message) {
  process.stderr.write(`${message}\n`);
  process.exit(1);
}

/** Debian packages of a few tests, which say why they skip without: nodes as network namespaces, a clock that is wrong, a browser. */
const TEST_PACKAGES = [
  ["iproute2", "/usr/sbin/ip"],
  // The page's tests.
  ["chromium", "/usr/bin/chromium"],
  ["libfaketime", `/usr/lib/${process.arch === "arm64" ? "aarch64" : "x86_64"}-linux-gnu/faketime/libfaketime.so.1`],
];

/** Debian packages of the native build, each with a file that shows it is there. */
const PACKAGES = [
  ["g++", "/usr/bin/g++"],
  ["cmake", "/usr/bin/cmake"],
  ["ninja-build", "/usr/bin/ninja"],
  ["libdnnl-dev", "/usr/include/oneapi/dnnl/dnnl.hpp"],
  ["doctest-dev", "/usr/include/doctest/doctest.h"],
];

function installPackages(packages, giveUp) {
  const missing = packages.filter(([, file]) => !existsSync(file)).map(([name]) => name);
  if (missing.length === 0) return;
  const isRoot = process.getuid?.() === 0;
  const apt = isRoot ? ["apt-get"] : ["sudo", "apt-get"];
  const by_hand = `Install them by hand: apt-get install ${missing.join(" ")}`;
  if (!existsSync("/usr/bin/apt-get")) return giveUp(`${missing.join(", ")} is needed.\n${by_hand}`);
  process.stdout.write(`Installing ${missing.join(", ")}\n`);
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  const quiet = { cwd: root, stdio: ["ignore", "ignore", "inherit"], env };
  for (const args of [["update"], ["install", "-y", "--no-install-recommends", ...missing]]) {
    const result = spawnSync(apt[0], [...apt.slice(1), ...args], quiet);
    if (result.status !== 0) return giveUp(`apt-get ${args[0]} failed.\n${by_hand}`);
  }
}

function installModules() {
  const lock = join(root, "package-lock.json");
  const installed = join(root, "node_modules", ".package-lock.json");
  if (existsSync(installed) && statSync(installed).mtimeMs >= statSync(lock).mtimeMs) return;
  // Not `npm ci`: it insists on optional packages for other platforms, which not every registry mirror carries.
  run("npm", ["install", "--no-save", "--no-audit", "--no-fund", "--loglevel=error"]);
}

/** Installs what some tests can use beyond what the build needs. */
export function installForTests() {
  installPackages(TEST_PACKAGES, (message) => process.stderr.write(`${message}\n`));
}

/** Installs what the build needs and this machine lacks. */
export function install() {
  const version = process.versions.node.split(".").map(Number);
  if (version[0] < 20) fail(`Node 20 or later is needed, this is ${process.versions.node}`);
  installPackages(PACKAGES, fail);
  installModules();
}

/** Installs and builds what is missing. */
export function prepare() {
  install();
  run("npm", ["run", "--silent", "build"]);
}

export function readJson(path) {
  return JSON.parse(readFileSync(path, "utf8"));
}
