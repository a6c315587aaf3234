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

/** What was checked and read before a worker was needed. */
export interface PreparedRun {
  /** What is the run's own; each adapter has its whole configuration. */
  readonly config: Config;
  /** In the order in which they are given; at least one. */
  readonly adapters: readonly AdapterRun[];
  /** The base that all share. */
  readonly base: ModelSetup;
  /** Null: none is asked for. */
  readonly trace: TraceFile | null;
  /** Whether somebody looks at the last step just now. */
  readonly watched: () => boolean;
  /** Who answers while it trains; null: nobody. */
  readonly replies: LiveReplies | null;
  /** Says a warning once, however often the run is restarted. */
  readonly warn: (warning: string) => void;
}

/** What all attempts of a run share. */
export interface Run extends PreparedRun {
  readonly cluster: Cluster;
  readonly interrupts: Interrupts;
  readonly log: Logger;
  readonly reporter: Reporter;
  /** What changes of an elastic run's workers have cost; null: it is not elastic. */
  readonly changes: Changes | null;
}
