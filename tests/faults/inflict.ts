import type { Cast } from "./cast.ts";
import { between, type Case, choose } from "./drawing.ts";
import type { Processes } from "./processes.ts";
import type { SmallDisk } from "./small-disk.ts";

/** Who is there to be hit. */
export interface Targets {
  readonly cast: Cast;
  readonly processes: Processes;
  readonly disk: SmallDisk | null;
}

/** A worker that says nothing for ten seconds counts as lost; this is on either side of it. */
const SHORT_MS = [100, 3_000] as const;
const LONG_MS = [11_000, 13_000] as const;
const LONG_SHARE = 0.2;

/** Does it. Returns what was done, for the report; null if its victim was gone already. */
export async function inflict({ fault, place, draw }: Case, targets: Targets): Promise<string | null> {
  const { cast, processes, disk } = targets;
  const rank = () => {
    const ranks = cast.ranks();
    return ranks.length === 0 ? 0 : choose(ranks, draw("victim"));
  };
  // Without TLS, frames of tensors carry a checksum, and control traffic does not.
  const bare = fault === "link corrupted" && place === "grpc";
  const link = () => {
    const tensors = bare || draw("plane") < 0.5 ? cast.tensorLinks() : [];
    return tensors.length > 0
      ? { proxy: choose(tensors, draw("victim")), name: "a link between workers" }
      : { proxy: choose(cast.controlLinks(), draw("victim")), name: "a worker's link to the coordinator" };
  };
  switch (fault) {
    case "worker killed":
      return hit(processes, rank(), "SIGKILL");
    case "worker terminated":
      return hit(processes, rank(), "SIGTERM");
    case "coordinator killed":
      return hit(processes, cast.coordinator.pid, "SIGKILL");
    case "coordinator terminated":
      return hit(processes, cast.coordinator.pid, "SIGTERM");
    case "node parent killed":
      return hit(processes, cast.parent() ?? 0, "SIGKILL");
    case "worker stopped":
      return hold(processes, rank(), draw);
    case "coordinator stopped":
      return hold(processes, cast.coordinator.pid, draw);
    case "link cut": {
      const { proxy, name } = link();
      const forMs = draw("for") < 0.5 ? 0 : Math.round(between(100, 3_000, draw("length")));
      proxy.cut(forMs);
      return `${name} cut${forMs === 0 ? "" : ` for ${forMs} ms`}`;
    }
    case "link slow": {
      const { proxy, name } = link();
      const stalls = draw("for") < LONG_SHARE;
      const delayMs = Math.round(stalls ? between(...LONG_MS, draw("length")) : between(5, 60, draw("length")));
      proxy.slow(delayMs, stalls ? delayMs : 3_000);
      return `${name} ${delayMs} ms late`;
    }
    case "link corrupted": {
      if (bare && cast.tensorLinks().length === 0) return null;
      const { proxy, name } = link();
      const direction = !bare && draw("direction") < 0.5 ? "up" : "down";
      const done = await Promise.race([proxy.flip(direction, draw("bit")).then(() => true), cast.coordinator.ended]);
      proxy.spare();
      return done === true ? `a bit of ${name} changed, ${direction}` : null;
    }
    case "disk full": {
      // Whole pages: from none to nearly a checkpoint.
      const left = Math.floor(draw("left") * 200) * 1024;
      disk!.fill(left);
      return `${left / 1024} KiB left on the disk`;
    }
    case "checkpoint damaged":
      throw new Error("a checkpoint is damaged between two runs");
  }
}

export function hit(processes: Processes, pid: number, signal: NodeJS.Signals): string | null {
  return processes.signal(pid, signal) ? signal : null;
}

/** Stops a process, and lets it go on later. */
function hold(processes: Processes, pid: number, draw: Case["draw"]): string | null {
  const ms = Math.round(
    draw("for") < LONG_SHARE ? between(...LONG_MS, draw("length")) : between(...SHORT_MS, draw("length")),
  );
  if (!processes.signal(pid, "SIGSTOP")) return null;
  setTimeout(() => processes.signal(pid, "SIGCONT"), ms);
  return `stopped for ${ms} ms`;
}
