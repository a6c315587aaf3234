import { formatBytes } from "../../common/bytes.ts";
import { PipeloraError } from "../../common/errors.ts";
import type { PlanRequest } from "../request.ts";
import { alignTable } from "../shown/table.ts";
import { leastOverfull, stageMemory } from "./partition.ts";
import { type PlacementProblem, wholeProblem } from "./planner.ts";

/** Whether the planner finds a placement for a changed request. */
export type FitTest = (request: PlanRequest) => boolean;

/**
 * The error for a request that fits nowhere: PL_PLACEMENT_INFEASIBLE. It shows what the placement nearest to fitting needs of each device, what each
 * device has, and which changes would make the request fit. Each of these changes was tried.
 */
export function infeasible(
  request: PlanRequest,
  problem: PlacementProblem,
  budgets: ReadonlyMap<number, number>,
  fits: FitTest,
): PipeloraError {
  const used = [...budgets.values()].filter((budget) => budget > 0).length;
  if (used === 0) {
    return new PipeloraError("PL_PLACEMENT_INFEASIBLE", "Every device has a budget of 0.", {
      hint: "Give at least one device a budget above 0 in max_memory.",
    });
  }
  const remedies = remediesFor(request, budgets, fits);
  return new PipeloraError(
    "PL_PLACEMENT_INFEASIBLE",
    `The model does not fit the devices.\n${needs(problem, budgets)}`,
    {
      hint:
        remedies.length === 0
          ? "Nothing tried here would make it fit: use devices with more memory."
          : `What would make it fit: ${remedies.join("; or ")}.`,
    },
  );
}

function needs(problem: PlacementProblem, budgets: ReadonlyMap<number, number>): string {
  const whole = wholeProblem(problem);
  const stages = leastOverfull(whole) ?? [];
  const rows = [...budgets].slice(0, MOST_ROWS).map(([id, budget]) => {
    const at = stages.findIndex((stage) => stage.device.id === id);
    const context = budget - (problem.devices.find((device) => device.id === id)?.capacity ?? budget);
    const needed = at < 0 ? 0 : context + stageMemory(stages[at]!, problem.inFlight(stages.length - 1 - at, 1));
    const short = needed > budget ? `short of ${formatBytes(needed - budget)}` : "";
    return [String(id), formatBytes(needed), formatBytes(budget), short];
  });
  const more = budgets.size > MOST_ROWS ? `\n… and ${budgets.size - MOST_ROWS} more devices` : "";
  return alignTable([["device", "needed", "available", ""], ...rows]) + more;
}

const MOST_ROWS = 16;
const FEWEST_TOKENS = 16;
const MOST_DEVICES = 1024;

/** Changes that would make the request fit, the least costly for the user first. Settings are combined only if no single one is enough. */
function remediesFor(request: PlanRequest, budgets: ReadonlyMap<number, number>, fits: FitTest): string[] {
  const checkpointed = withCheckpointing(request);
  const smaller = withSmallerBatches(request, fits);
  const settings: string[] = [];
  const uncached: PlanRequest = { ...request, weightCache: "off" };
  if (request.weightCache === "on" && fits(uncached)) settings.push("--weight-cache auto");
  const shorter = withSmallerCache(request, fits);
  if (shorter !== null) settings.push(`--kv-cache-tokens ${shorter.work.cacheTokens}`);
  if (checkpointed !== null && fits(checkpointed)) settings.push("--gradient-checkpointing");
  if (smaller !== null) settings.push(`--micro-batch-tokens ${smaller.work.tokens} with rows no longer than that`);
  for (const [name, quantized] of lowerPrecisions(request)) if (fits(quantized)) settings.push(name);
  const more = withMoreDevices(request, budgets, fits);
  return [...(settings.length > 0 ? settings : combined(request, fits)), ...(more === null ? [] : [more])];
}

function withCheckpointing(request: PlanRequest): PlanRequest | null {
  const { checkpointing, forwardOnly } = request.work;
  if (checkpointing !== "none" || request.lora.length === 0 || forwardOnly === true) return null;
  return { ...request, work: { ...request.work, checkpointing: "all" } };
}

/** Half, a quarter, … of the key/value cache: the largest that fits. */
function withSmallerCache(request: PlanRequest, fits: FitTest): PlanRequest | null {
  for (let rows = request.work.cacheTokens >> 1; rows >= FEWEST_TOKENS; rows >>= 1) {
    const smaller = { ...request, work: { ...request.work, cacheTokens: rows } };
    if (fits(smaller)) return smaller;
  }
  return null;
}

/** Half, a quarter, … of a step's tokens: the most that fit. */
function withSmallerBatches(request: PlanRequest, fits: FitTest): PlanRequest | null {
  const { work } = request;
  if (work.forwardOnly === true) return null;
  for (let tokens = work.tokens >> 1; tokens >= FEWEST_TOKENS; tokens >>= 1) {
    const share = tokens / work.tokens;
    const microBatches = Math.ceil(work.microBatches / share);
    const labelTokens = Math.ceil(work.labelTokens * share);
    const smaller = { ...request, work: { ...work, tokens, labelTokens, microBatches } };
    if (fits(smaller)) return smaller;
  }
  return null;
}

function lowerPrecisions(request: PlanRequest): [string, PlanRequest][] {
  const { holding } = request;
  const method = holding.quantization.method;
  const four = { method: "4bit", quantType: "nf4", doubleQuant: true } as const;
  const options: [string, PlanRequest][] = [];
  if (method === "none" && holding.dtype === "float32") {
    options.push(["--torch-dtype bfloat16", { ...request, holding: { ...holding, dtype: "bfloat16" } }]);
  }
  if (method === "none") {
    options.push(["--load-in-8bit", { ...request, holding: { ...holding, quantization: { method: "8bit" } } }]);
  }
  if (method !== "4bit") options.push(["--load-in-4bit", { ...request, holding: { ...holding, quantization: four } }]);
  return options;
}

/** The fewest devices, all like the one with the largest budget, that would fit: doubling finds an upper bound. */
function withMoreDevices(request: PlanRequest, budgets: ReadonlyMap<number, number>, fits: FitTest): string | null {
  const [id, budget] = [...budgets].sort((a, b) => b[1] - a[1])[0]!;
  const model = request.devices.find((device) => device.id === id)!;
  const last = Math.max(...request.devices.map((device) => device.id));
  const grown = (extra: number): PlanRequest => {
    const added = Array.from({ length: extra }, (_, index) => ({ ...model, id: last + 1 + index }));
    const maxMemory = new Map([...budgets, ...added.map((device): [number, number] => [device.id, budget])]);
    return { ...request, devices: [...request.devices, ...added], maxMemory };
  };
  let high = 1;
  while (!fits(grown(high))) {
    high *= 2;
    if (high > MOST_DEVICES) return null;
  }
  let low = high >> 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (fits(grown(middle))) high = middle;
    else low = middle;
  }
  return `${high} more device${high === 1 ? "" : "s"} of ${formatBytes(budget)}`;
}

function combined(request: PlanRequest, fits: FitTest): string[] {
  let all = request;
  const names: string[] = [];
  const checkpointed = withCheckpointing(all);
  if (checkpointed !== null) {
    all = checkpointed;
    names.push("--gradient-checkpointing");
  }
  const lowest = lowerPrecisions(all).at(-1);
  if (lowest !== undefined) {
    names.push(lowest[0]);
    all = lowest[1];
  }
  if (names.length > 1 && fits(all)) return [names.join(" with ")];
  const smaller = withSmallerBatches(all, fits);
  return smaller === null ? [] : [[...names, `--micro-batch-tokens ${smaller.work.tokens}`].join(" with ")];
}
