import { formatBytes } from "../../common/bytes.ts";
import { formatLinks, type PlannedLink } from "../link-kinds.ts";
import type { Plan } from "../plan.ts";
import { alignTable } from "./table.ts";

/** The plan as `coordinator plan --json` prints it. */
export function planJson(plan: Plan, links: readonly PlannedLink[]): Record<string, unknown> {
  return {
    hf_device_map: Object.fromEntries(plan.hfDeviceMap),
    devices: plan.devices.map(({ device, rank, segments, memory }) => ({
      device,
      rank,
      segments: segments.map((index) => {
        const { firstLayer, lastLayer, offloadedBlocks, checkpointedBlocks, cachedBlocks } = plan.segments[index]!;
        return {
          ...{ index, first_layer: firstLayer, last_layer: lastLayer },
          ...{ checkpointed_blocks: checkpointedBlocks, cached_blocks: cachedBlocks },
          offloaded_blocks: offloadedBlocks,
        };
      }),
      memory,
    })),
    predicted:
      plan.predicted === null
        ? null
        : {
            step_time_ms: plan.predicted.stepTimeMs,
            bubble: plan.predicted.bubble,
            tokens_per_s: plan.predicted.tokensPerSecond,
            evaluation_time_ms: plan.predicted.evaluationMs,
          },
    replicas: plan.replicas.length,
    schedule: plan.schedule,
    micro_batches: plan.predicted?.microBatches ?? null,
    micro_batch_tokens: plan.predicted?.microBatchTokens ?? null,
    links,
    planner: plan.planner,
    strategy: plan.strategy,
    warnings: plan.warnings,
    problem: plan.problem,
  };
}

/** The plan as a table for people: a line for each device, then the predictions. */
export function formatPlan(plan: Plan, layerNames: readonly string[], links: readonly PlannedLink[]): string {
  const head = ["device", "layers", "weights", "LoRA", "activations", "workspace", "total", "budget"];
  const rows = plan.devices.map(({ device, segments, memory }) => [
    String(device),
    segments.length === 0 ? "-" : segments.map((index) => layersOf(plan, index, layerNames)).join(", "),
    ...[
      memory.weights + memory.weightCache,
      memory.lora,
      memory.activations,
      memory.workspace + memory.expansion + memory.context + memory.cache,
    ].map(formatBytes),
    formatBytes(memory.total),
    memory.budget === 0 ? "not used" : formatBytes(memory.budget),
  ]);
  const lines = [alignTable([head, ...rows])];
  if (plan.predicted !== null) {
    const { microBatches, microBatchTokens, stepTimeMs, bubble, tokensPerSecond, evaluationMs } = plan.predicted;
    const used = usedDevices(plan);
    const copies = plan.replicas.length > 1 ? `, ${plan.replicas.length} replicas` : "";
    lines.push(
      `${plan.strategy} over ${used} device${used === 1 ? "" : "s"}${copies}: predicted ${stepTimeMs.toFixed(1)} ms a step, ` +
        `${Math.round(tokensPerSecond)} tokens/s, ${(100 * bubble).toFixed(1)} % idle`,
      `a step is ${microBatches === 1 ? "one micro-batch" : `${microBatches} micro-batches`} of at most ${microBatchTokens} tokens`,
    );
    if (evaluationMs !== null) lines.push(`an evaluation takes ${evaluationMs.toFixed(1)} ms`);
  }
  for (const line of [spreadLine(plan), cachedLine(plan), hostLine(plan)]) if (line !== null) lines.push(line);
  if (links.length > 0) lines.push(`links: ${formatLinks(links)}`);
  for (const warning of plan.warnings) lines.push(`warning: ${warning}`);
  if (plan.problem !== null) lines.push(`can't run: ${plan.problem}`);
  return lines.join("\n");
}

/** Says how the model is spread, if not as one run of layers a device. */
function spreadLine({ segments, schedule }: Plan): string | null {
  const turns = segments.filter(({ devices }) => devices.length > 1).map(({ devices }) => devices.join(", "));
  const parts = [
    ...(schedule === "interleaved" ? [`${schedule}: micro-batches go through several segments a device`] : []),
    ...[...new Set(turns)].map((devices) => `devices ${devices} take the head's micro-batches in turn`),
  ];
  return parts.length === 0 ? null : parts.join("; ");
}

/** Says how many blocks' weights each device keeps expanded. */
function cachedLine({ segments, devices }: Plan): string | null {
  const own = devices.flatMap(({ device, segments: held, memory }) => {
    const blocks = held.reduce((sum, index) => sum + segments[index]!.cachedBlocks, 0);
    const bytes = formatBytes(memory.weightCache);
    return blocks === 0 ? [] : [`device ${device} ${blocks} block${blocks === 1 ? "" : "s"} (${bytes})`];
  });
  return own.length === 0 ? null : `weights also kept expanded: ${own.join(", ")}`;
}

/** Says what GPUs keep in their hosts' memory: the embedding, and the activations of how many blocks. */
function hostLine({ segments, devices }: Plan): string | null {
  const own = devices.flatMap(({ device, segments: held, memory: { hostWeights, hostActivations } }) => {
    if (hostWeights + hostActivations === 0) return [];
    const blocks = held.reduce((sum, index) => sum + segments[index]!.offloadedBlocks, 0);
    const what = [
      ...(hostWeights > 0 ? [`the embedding (${formatBytes(hostWeights)})`] : []),
      ...(blocks > 0
        ? [
            `activations of ${blocks} block${blocks === 1 ? "" : "s"}, inputs of others (${formatBytes(hostActivations)})`,
          ]
        : []),
    ];
    return [`device ${device} ${what.join(", ")}`];
  });
  return own.length === 0 ? null : `in the host's memory: ${own.join("; ")}`;
}

function layersOf(plan: Plan, index: number, names: readonly string[]): string {
  const { firstLayer, lastLayer } = plan.segments[index]!;
  const [first, last] = [names[firstLayer]!, names[lastLayer]!];
  return firstLayer === lastLayer ? first : `${first} … ${last}`;
}

/** The plan that one strategy and schedule give for a request. `plan` null: nothing fits. */
export interface StrategyOutcome {
  readonly strategy: string;
  readonly schedule: string;
  readonly plan: Plan | null;
  /** Micro-batches of a step in each replica. */
  readonly microBatches: number;
}

/** A table of strategies: the predicted step of each, and its fullest device. */
export function formatComparison(outcomes: readonly StrategyOutcome[]): string {
  const head = ["strategy", "schedule", "devices", "replicas", "micro-batches", "step", "idle", "tokens/s", "fullest"];
  const rows = outcomes.map(({ strategy, schedule, plan, microBatches }) => {
    if (plan?.predicted == null) return [strategy, schedule, "does not fit", "", "", "", "", "", ""];
    const { stepTimeMs, bubble, tokensPerSecond } = plan.predicted;
    return [
      ...[strategy, schedule, String(usedDevices(plan)), String(plan.replicas.length), String(microBatches)],
      ...[`${stepTimeMs.toFixed(1)} ms`, `${(100 * bubble).toFixed(1)} %`, String(Math.round(tokensPerSecond))],
      formatBytes(fullest(plan)),
    ];
  });
  return alignTable([head, ...rows]);
}

export function comparisonJson(outcomes: readonly StrategyOutcome[]): Record<string, unknown>[] {
  return outcomes.map(({ strategy, schedule, plan, microBatches }) => {
    if (plan?.predicted == null) return { strategy, schedule, fits: false };
    return {
      ...{ strategy, schedule, fits: true, devices: usedDevices(plan), replicas: plan.replicas.length },
      ...{ micro_batches: microBatches, step_time_ms: plan.predicted.stepTimeMs, bubble: plan.predicted.bubble },
      ...{ tokens_per_s: plan.predicted.tokensPerSecond, fullest_bytes: fullest(plan) },
    };
  });
}

/** The plan for a request with one kind of products. */
export interface ProductsOutcome {
  readonly products: string;
  readonly plan: Plan;
}

/** A table of products in 16 bits and in e4m3: the predicted step of each, and its fullest device. */
export function formatProducts(outcomes: readonly ProductsOutcome[]): string {
  const rows = outcomes.map(({ products, plan }) => {
    if (plan.predicted === null) return [products, "", "", formatBytes(fullest(plan))];
    const { stepTimeMs, tokensPerSecond } = plan.predicted;
    return [products, `${stepTimeMs.toFixed(1)} ms`, String(Math.round(tokensPerSecond)), formatBytes(fullest(plan))];
  });
  return alignTable([["products in", "step", "tokens/s", "fullest"], ...rows]);
}

export function productsJson(outcomes: readonly ProductsOutcome[]): Record<string, unknown>[] {
  return outcomes.map(({ products, plan }) => ({
    ...{ products, step_time_ms: plan.predicted?.stepTimeMs ?? null },
    ...{ tokens_per_s: plan.predicted?.tokensPerSecond ?? null, fullest_bytes: fullest(plan) },
  }));
}

function usedDevices({ devices }: Plan): number {
  return devices.filter(({ segments }) => segments.length > 0).length;
}

function fullest({ devices }: Plan): number {
  return Math.max(...devices.map(({ memory }) => memory.total));
}
