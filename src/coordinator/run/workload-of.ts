import type { ResolvedLora } from "../../models/lora-targets.ts";
import { roundWorkload, trainingWorkload, type Workload } from "../planning/workload.ts";
import type { AdapterRun } from "./adapter-run.ts";
import type { Run } from "./run.ts";

/** Those that take part in an attempt, in the order of their numbers on the workers. */
export function liveOf({ adapters }: Pick<Run, "adapters">): readonly AdapterRun[] {
  return adapters.filter(({ live }) => live);
}

/** What the live adapters' rounds are: cut as before, unless others than before are to do them and may differ in rounding. */
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
