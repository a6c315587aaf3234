import process from "node:process";

/** Seconds of processor time that all threads of this process have used so far. */
export function processorSeconds(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}
