import type { Logger } from "../../common/log.ts";
import { adapterConfigs } from "../../config/adapters.ts";
import type { Config } from "../../config/options.ts";
import { forecastJson, formatForecast } from "../../coordinator/planning/forecast-text.ts";
import { planWithoutWorkers } from "../../coordinator/planning/plan-on-paper.ts";
import { writeTextAtomically } from "../../formats/atomic-file.ts";
import type { HeldParameter } from "../../models/parameters.ts";
import { formatRental, rentalJson } from "../../plan/paper/format-rental.ts";
import {
  comparisonJson,
  formatComparison,
  formatPlan,
  formatProducts,
  planJson,
  productsJson,
} from "../../plan/shown/format-plan.ts";
import { planPage } from "../../plan/shown/plan-page.ts";
import { alignTable } from "../../plan/shown/table.ts";

export async function planCommand(config: Config, log: Logger): Promise<number> {
  const paper = await planWithoutWorkers(config, adapterConfigs("plan", config), log);
  const { plan, links, layerNames, parameters, comparison, products, adapters, devices, timesFor, rental } = paper;
  const tables = [
    { heading: "Plan", text: `${formatPlan(plan, layerNames, links)}\ntimes are for ${timesFor}` },
    ...(adapters === null ? [] : [{ heading: "Adapters", text: formatForecast(adapters) }]),
    ...(products.length > 0 ? [{ heading: "Products", text: formatProducts(products) }] : []),
    ...(comparison.length > 0 ? [{ heading: "Strategies", text: formatComparison(comparison) }] : []),
    ...(rental === null
      ? []
      : [{ heading: "What to rent", text: formatRental(rental.sets, rental.steps, rental.deadline) }]),
  ];
  if (config.html !== null) {
    const title = `${config.model} on ${timesFor}`;
    await writeTextAtomically(config.html, planPage({ title, plan, devices, layerNames, comparison, tables }));
    log.info(`wrote ${config.html}`);
  }
  if (config.json) {
    const rows = parameters.map(({ name, shape, dtype }) => ({ name, shape, dtype }));
    const compared = { strategies: comparisonJson(comparison), products: productsJson(products) };
    const sets = rental === null ? {} : { rental: rentalJson(rental.sets) };
    const several = adapters === null ? {} : { several: forecastJson(adapters) };
    const all = { ...planJson(plan, links), ...several, ...compared, ...sets, times_for: timesFor, parameters: rows };
    process.stdout.write(`${JSON.stringify(all)}\n`);
  } else {
    const texts = [...tables.map(({ text }) => text), alignTable(heldForms(parameters))];
    process.stdout.write(`${texts.join("\n\n")}\n`);
  }
  const late = rental !== null && rental.sets[0]?.meets !== true;
  return plan.problem === null && !late ? 0 : 1;
}

/** Prints in what form the base's parameters are held: name, shape, dtype, count. All blocks share one line. */
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
