import type { Config } from "../../config/options.ts";
import { planWithoutWorkers } from "../../coordinator/plan-on-paper.ts";
import { formatPlan, planJson } from "../../plan/format-plan.ts";

export async function planCommand(config: Config): Promise<number> {
  const { plan, layerNames } = await planWithoutWorkers(config);
  process.stdout.write(config.json ? `${JSON.stringify(planJson(plan))}\n` : `${formatPlan(plan, layerNames)}\n`);
  return plan.problem === null ? 0 : 1;
}
