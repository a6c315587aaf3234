import { allowedCores } from "../../common/machine.ts";
import type { Config } from "../../config/options.ts";
import type { Capabilities } from "../../engine/index.ts";

export interface LocalDevices {
  readonly devices: readonly string[];
  /** CPU threads of each worker. */
  readonly threads: number;
  /** Cores to pin each worker to, as taskset takes them; null: none. */
  readonly pin: readonly string[] | null;
}

/** The workers that a coordinator without --listen starts: one per visible GPU, else `--workers` CPU processes. */
export function localDevices(config: Pick<Config, "workers" | "threads">, capabilities: Capabilities): LocalDevices {
  const gpus = capabilities.cuda?.devices ?? [];
  // A cpuset (taskset, Slurm, a container) may leave cores that do not begin at 0.
  const allowed = allowedCores();
  const cores = allowed.length;
  if (gpus.length > 0 && config.workers === null) {
    const devices = gpus.map(({ index }) => `cuda:${index}`);
    return { devices, threads: config.threads ?? Math.max(1, Math.floor(cores / devices.length)), pin: null };
  }
  const count = config.workers ?? 1;
  const threads = config.threads ?? Math.max(1, Math.floor(cores / count));
  // Workers that exactly fill the cores run each on its own; an oversubscribed or partial fill is left to the kernel.
  const pin =
    count > 1 && threads * count === cores
      ? Array.from({ length: count }, (_, index) => allowed.slice(index * threads, (index + 1) * threads).join(","))
      : null;
  return { devices: Array.from({ length: count }, () => "cpu"), threads, pin };
}
