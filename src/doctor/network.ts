import { readFile } from "node:fs/promises";
import { createConnection, createServer, type Server } from "node:net";
import { hostname } from "node:os";
import { type Finding, fail, ok, warn } from "./finding.ts";

const WAIT_MS = 5_000;
/** Connections of one rank: its own to the coordinator, and one in each direction to every other rank. */
const FEW_PORTS = 1_000;

/** Workers of one machine connect over loopback, on a port that the system chooses. */
export async function portsFinding(): Promise<Finding> {
  const range = await readFile("/proc/sys/net/ipv4/ip_local_port_range", "utf8").catch(() => "");
  const [first, last] = range.trim().split(/\s+/).map(Number);
  const known = first !== undefined && last !== undefined && last > 0;
  const found = known ? `loopback answers, ports ${first} to ${last} for tensors` : "loopback answers";
  const problem = await meet("127.0.0.1");
  if (problem !== null)
    return fail(
      "ports",
      `no connection over 127.0.0.1: ${problem}`,
      "Bring the interface lo up, and let programs connect over it.",
    );
  if (known && last - first < FEW_PORTS)
    return warn("ports", found, "Widen net.ipv4.ip_local_port_range: each worker listens on a port of its own.");
  return ok("ports", found);
}

/** Connects to a server of this process. Returns what failed; null: it worked. */
async function meet(host: string): Promise<string | null> {
  const server = createServer((socket) => socket.end());
  try {
    const port = await listening(server, host);
    await new Promise<void>((resolve, reject) => {
      const socket = createConnection({ host, port, timeout: WAIT_MS });
      socket.on("connect", () => {
        socket.destroy();
        resolve();
      });
      socket.on("timeout", () => {
        socket.destroy();
        reject(new Error(`no answer in ${WAIT_MS / 1000} s`));
      });
      socket.on("error", reject);
    });
    return null;
  } catch (error) {
    return (error as Error).message;
  } finally {
    server.close();
  }
}

function listening(server: Server, host: string): Promise<number> {
  return new Promise((resolve, reject) => {
    server.on("error", reject);
    server.listen({ host, port: 0 }, () => resolve((server.address() as { port: number }).port));
  });
}

/** The name by which a node is known. */
export function hostFinding(name: string = hostname()): Finding {
  return name === "localhost" || name === ""
    ? warn("host", `"${name}"`, "Over several machines each needs a name of its own: set the host's, or --node-name.")
    : ok("host", name);
}
