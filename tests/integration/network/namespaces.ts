import { type ChildProcess, type ChildProcessWithoutNullStreams, spawn, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";

/** Machines of a test: network namespaces on one Ethernet, each with an address and names of the others. */
export interface Network {
  readonly addresses: readonly string[];
  /** Starts a built program ("coordinator", "worker") on machine `index`. `environment` adds variables. */
  start(
    index: number,
    program: string,
    args: readonly string[],
    environment?: Readonly<Record<string, string>>,
  ): ChildProcessWithoutNullStreams;
  /** What machine `index` resolves: {name: address}, in place of what it resolved before. */
  names(index: number, known: Readonly<Record<string, string>>): void;
}

export interface Wire {
  readonly delayMs: number;
  /** Share of frames lost, each way. */
  readonly loss: number;
}

const run = (command: string, ...args: string[]) => {
  const { status, stderr, error } = spawnSync(command, args, { encoding: "utf8" });
  if (status !== 0) throw new Error(`${command} ${args.join(" ")}: ${error?.message ?? stderr.trim()}`);
};

/** Why namespaces can't be made here; false if they can. */
export function namespacesMissing(): string | false {
  if (process.getuid?.() !== 0) return "network namespaces need root";
  const probe = `plprobe${process.pid}`;
  try {
    run("ip", "netns", "add", probe);
    run("ip", "-n", probe, "link", "add", "plv0", "type", "veth", "peer", "name", "plv1");
    return false;
  } catch (error) {
    return `no network namespaces here: ${(error as Error).message}`;
  } finally {
    spawnSync("ip", ["netns", "del", probe]);
  }
}

/**
 * Makes `count` namespaces and removes them, with what runs in them, after the test. `wire`: every frame is late and some are lost, by
 * tc's netem where the kernel has it, else by a hub of our own between TAP devices.
 */
export async function makeNetwork(t: { after(fn: () => void): void }, count: number, wire?: Wire): Promise<Network> {
  const prefix = `pl${process.pid}x${Math.floor(Math.random() * 1e4)}`;
  const spaces = Array.from({ length: count }, (_, index) => `${prefix}-${index}`);
  const bridge = `${prefix}-sw`;
  const folder = mkdtempSync(join(tmpdir(), "pipelora-net-"));
  const children: ChildProcess[] = [];
  t.after(() => {
    for (const child of children) child.kill("SIGKILL");
    for (const space of [...spaces, bridge]) {
      spawnSync("ip", ["netns", "del", space]);
      rmSync(join("/etc/netns", space), { recursive: true, force: true });
    }
    rmSync(folder, { recursive: true, force: true });
  });
  for (const space of spaces) {
    run("ip", "netns", "add", space);
    mkdirSync(join("/etc/netns", space), { recursive: true });
  }
  if (wire === undefined || hasNetem(spaces[0]!)) plugVeths(spaces, bridge, wire);
  else children.push(await plugHub(spaces, wire, folder));
  const addresses = spaces.map((space, index) => {
    const address = `10.77.0.${index + 1}`;
    run("ip", "-n", space, "addr", "add", `${address}/24`, "dev", "eth0");
    for (const device of ["lo", "eth0"]) run("ip", "-n", space, "link", "set", device, "up");
    return address;
  });
  const names: Network["names"] = (index, known) => {
    const lines = Object.entries({ localhost: "127.0.0.1", ...known }).map(([name, address]) => `${address} ${name}\n`);
    // `ip netns exec` puts this file over /etc/hosts.
    writeFileSync(join("/etc/netns", spaces[index]!, "hosts"), lines.join(""));
  };
  for (const index of spaces.keys()) names(index, {});
  return {
    addresses,
    names,
    start: (index, program, args, environment = {}) => {
      const script = join(PACKAGE_ROOT, "dist", "cli", `${program}.js`);
      const child = spawn("ip", ["netns", "exec", spaces[index]!, process.execPath, script, ...args], {
        stdio: ["pipe", "pipe", "pipe"],
        env: { ...process.env, ...environment },
      });
      children.push(child);
      return child;
    },
  };
}

function hasNetem(space: string): boolean {
  const { status } = spawnSync("tc", ["-n", space, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]);
  spawnSync("tc", ["-n", space, "qdisc", "del", "dev", "lo", "root"]);
  return status === 0;
}

function plugVeths(spaces: readonly string[], bridge: string, wire: Wire | undefined): void {
  run("ip", "netns", "add", bridge);
  run("ip", "-n", bridge, "link", "add", "br0", "type", "bridge");
  run("ip", "-n", bridge, "link", "set", "br0", "up");
  for (const [index, space] of spaces.entries()) {
    run("ip", "-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", `v${index}`, "netns", bridge);
    run("ip", "-n", bridge, "link", "set", `v${index}`, "master", "br0", "up");
    if (wire === undefined) continue;
    const netem = ["netem", "delay", `${wire.delayMs}ms`, "loss", `${wire.loss * 100}%`];
    run("tc", "-n", space, "qdisc", "add", "dev", "eth0", "root", ...netem);
  }
}

async function plugHub(spaces: readonly string[], wire: Wire, folder: string): Promise<ChildProcess> {
  const program = join(folder, "hub");
  run("g++", "-std=c++20", "-O2", "-o", program, join(PACKAGE_ROOT, "tests", "integration", "network", "hub.cpp"));
  const hub = spawn(program, [String(wire.delayMs), String(wire.loss), ...spaces], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  await new Promise<void>((resolve, reject) => {
    hub.stdout.once("data", () => resolve());
    hub.once("exit", (code) => reject(new Error(`the hub ended with ${code}`)));
  });
  return hub;
}
