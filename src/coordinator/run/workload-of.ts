import type { ResolvedLora } from "../../models/lora-targets.ts";
import { roundWorkload, trainingWorkload, type Workload } from "../planning/workload.ts";
import type { AdapterRun } from "./adapter-run.ts";
import type { Run } from "./run.ts";

/** The adapters that take part in an attempt, in the order of their numbers on the workers. */
export function liveOf({ adapters }: Pick<Run, "adapters">): readonly AdapterRun[] {
  return adapters.filter(({ live }) => live);
}

/** The work of the live adapters' rounds. The cut stays as it was, except in an elastic run: its other workers may round differently anyway. */
export function workloadOf(run: Pick<Run, "adapters" | "changes">): {
  workload: Workload;
  beside: readonly ResolvedLora[];
} {
  const live = liveOf(run);
  const cuts = run.changes === null ? live.flatMap(({ cut }) => (cut === null ? [] : [cut])) : [];
  const workload = roundWorkload(
    live.map((adapter) => trainingWorkload(adapter.config, adapter.data)),
    cuts.length === live.length ? cuts : null,
  );
  return { workload, beside: live.slice(1).map(({ setup }) => setup.lora!) };
}
