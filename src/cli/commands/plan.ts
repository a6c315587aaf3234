import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { planWithoutWorkers } from "../../coordinator/planning/plan-on-paper.ts";
import type { HeldParameter } from "../../models/parameters.ts";
import {
  comparisonJson,
  formatComparison,
  formatPlan,
  formatProducts,
  planJson,
  productsJson,
} from "../../plan/format-plan.ts";
import { alignTable } from "../../plan/table.ts";

export async function planCommand(config: Config, log: Logger): Promise<number> {
  const { plan, links, layerNames, parameters, comparison, products } = await planWithoutWorkers(config, log);
  if (config.json) {
    const rows = parameters.map(({ name, shape, dtype }) => ({ name, shape, dtype }));
    const compared = { strategies: comparisonJson(comparison), products: productsJson(products) };
    process.stdout.write(`${JSON.stringify({ ...planJson(plan, links), ...compared, parameters: rows })}\n`);
  } else {
    const parts = [formatPlan(plan, layerNames, links), alignTable(heldForms(parameters))];
    if (comparison.length > 0) parts.splice(1, 0, formatComparison(comparison));
    if (products.length > 0) parts.splice(1, 0, formatProducts(products));
    process.stdout.write(`${parts.join("\n\n")}\n`);
  }
  return plan.problem === null ? 0 : 1;
}

/** How the base's parameters are held, those of all blocks in one line: name, shape, dtype, count. */
function heldForms(parameters: readonly HeldParameter[]): string[][] {
  const forms = new Map<string, { row: string[]; count: number }>();
  for (const { name, shape, dtype, trainable } of parameters) {
    if (trainable) continue;
    const row = [name.replace(/(?<=\.)\d+(?=\.)/, "*"), `[${shape.join(", ")}]`, dtype];
    const key = row.join(" ");
    forms.set(key, { row, count: (forms.get(key)?.count ?? 0) + 1 });
  }
  return [
    ["parameter", "shape", "dtype", "count"],
    ...[...forms.values()].map(({ row, count }) => [...row, String(count)]),
  ];
}
