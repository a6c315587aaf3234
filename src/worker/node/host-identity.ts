import { readFileSync, readlinkSync } from "node:fs";

/**
 * Equal for two processes that can map each other's memory through /proc: the same boot of the same host, process id
 * namespace and user. Empty where that can't be told.
 */
export function hostIdentity(): string {
  try {
    const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
    return `${boot} ${readlinkSync("/proc/self/ns/pid")} user ${process.getuid!()}`;
  } catch {
    return "";
  }
}
