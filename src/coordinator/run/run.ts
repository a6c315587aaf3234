import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import type { Cluster } from "../cluster/cluster.ts";
import type { Interrupts } from "../cluster/interrupts.ts";
import type { ModelSetup } from "../planning/model-setup.ts";
import type { AdapterRun } from "./adapter-run.ts";
import type { Changes } from "./elastic/changes.ts";
import type { LiveReplies } from "./replies/live-replies.ts";
import type { Reporter } from "./reporter.ts";
import type { TraceFile } from "./tracing/trace-file.ts";

/** A run after everything was checked and read that needs no worker. */
export interface PreparedRun {
  /** The run's configuration. Each adapter has a complete one of its own. */
  readonly config: Config;
  /** In the given order; at least one. */
  readonly adapters: readonly AdapterRun[];
  /** The base that all adapters share. */
  readonly base: ModelSetup;
  /** Null: no trace is asked for. */
  readonly trace: TraceFile | null;
  /** Whether the page is showing the last step. */
  readonly watched: () => boolean;
  /** Answers requests while the run trains; null: nothing does. */
  readonly replies: LiveReplies | null;
  /** Logs a warning once, however often the run is restarted. */
  readonly warn: (warning: string) => void;
}

/** A run as all its attempts share it. */
export interface Run extends PreparedRun {
  readonly cluster: Cluster;
  readonly interrupts: Interrupts;
  readonly log: Logger;
  readonly reporter: Reporter;
  /** Changes of an elastic run's workers; null: the run is not elastic. */
  readonly changes: Changes | null;
}
