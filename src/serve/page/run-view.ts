import { stat } from "node:fs/promises";
import { join } from "node:path";
import { filesOf, listCheckpoints } from "../../formats/checkpoint-folders.ts";
import { countOf, type Fields, fieldsOf, isFields, listOf, numberOf, textOf } from "./fields.ts";
import { jsonFile, runName, STATE_FILE } from "./folder-run.ts";
import type { RunRecord } from "./run-record.ts";
import type { RunSource } from "./run-source.ts";
import { sentBetween } from "./timeline.ts";
import type {
  CheckpointView,
  LinkView,
  MemoryName,
  MemoryPart,
  NodeView,
  PlacedDevice,
  Placement,
  RunStatus,
  RunSummary,
  RunView,
} from "./wire.ts";

/** Steps over which a run's speed is told. */
const RECENT_STEPS = 20;
/** A run of another process that was silent for this long, or for this many of its steps, may have ended. */
const SILENT_MS = 60_000;
const SILENT_STEPS = 20;
/** Limits for a list of layers and a list of devices, above those of any real run. */
const MOST_LISTED = 10_000;

export function summaryOf(run: RunSource, now: number): RunSummary {
  const { record } = run;
  const { columns, evaluations, maxSteps, epoch, startedAt, heardAt, ending } = record;
  const { tokensPerSecond, msPerStep } = columns.recent(RECENT_STEPS);
  const last = columns.since(Math.max(0, columns.length - 1));
  const status = statusOf(run, now, msPerStep);
  const left = maxSteps === null || msPerStep === null ? null : ((maxSteps - columns.lastStep) * msPerStep) / 1000;
  return {
    ...{ id: run.id, name: runName(run), status, step: columns.lastStep, maxSteps, epoch },
    loss: last.loss[0] ?? null,
    evalLoss: evaluations.at(-1)?.loss ?? null,
    bestEvalLoss: evaluations.length === 0 ? null : Math.min(...evaluations.map(({ loss }) => loss)),
    ...{ tokensPerSecond, startedAt, heardAt },
    secondsLeft: status === "running" && left !== null ? Math.max(0, left) : null,
    error: ending?.error ?? null,
  };
}

function statusOf({ record, live }: RunSource, now: number, msPerStep: number | null): RunStatus {
  const { ending, heardAt, columns, lastStep } = record;
  if (ending !== null) {
    if (ending.error === null) return "done";
    return ending.error.code === "PL_INTERRUPTED" ? "stopped" : "failed";
  }
  if (!live) {
    const patience = Math.max(SILENT_MS, SILENT_STEPS * (msPerStep ?? 0));
    if (heardAt === null || now - heardAt > patience) return "silent";
  }
  return columns.length === 0 && lastStep === null ? "waiting" : "running";
}

export async function viewOf(run: RunSource, now: number): Promise<RunView> {
  const { record } = run;
  return {
    summary: summaryOf(run, now),
    settings: record.settings,
    placement: placementOf(record),
    nodes: nodesOf(record),
    links: linksOf(record),
    checkpoints: await checkpointsOf(run),
  };
}

function placementOf({ plan, measured }: RunRecord): Placement | null {
  if (plan === null) return null;
  const ranks = ranksOf(plan);
  const devices = listOf(plan["devices"])
    .slice(0, MOST_LISTED)
    .map((device): PlacedDevice => {
      const rank = countOf(device["rank"]) ?? 0;
      const memory = fieldsOf(device["memory"]);
      const own = ranks.find((one) => one.rank === rank);
      return {
        rank,
        name: own === undefined ? "" : `${own.device}, ${own.name}`,
        node: own?.node ?? "",
        segments: listOf(device["segments"]).flatMap((segment) => {
          const [index, first, last] = ["index", "first_layer", "last_layer"].map((name) => countOf(segment[name]));
          return index == null || first == null || last == null ? [] : [{ index, first, last }];
        }),
        budget: numberOf(memory["budget"]) ?? 0,
        predicted: predictedParts(memory),
        measured: measuredParts(listOf(measured["ranks"]).find((one) => one["rank"] === rank)),
      };
    });
  const predicted = isFields(plan["predicted"]) ? plan["predicted"] : null;
  const layers = Array.isArray(plan["layers"]) ? plan["layers"].slice(0, MOST_LISTED).map(String) : [];
  return {
    strategy: textOf(plan["strategy"]) ?? "",
    layers,
    replicas: countOf(plan["replicas"]) ?? 1,
    devices,
    predicted:
      predicted === null
        ? null
        : {
            stepMs: numberOf(predicted["step_time_ms"]) ?? 0,
            bubble: numberOf(predicted["bubble"]) ?? 0,
            tokensPerSecond: numberOf(predicted["tokens_per_s"]) ?? 0,
          },
    microBatches: countOf(plan["micro_batches"]),
    microBatchTokens: countOf(plan["micro_batch_tokens"]),
    measuredStepMs: numberOf(measured["step_ms"]),
  };
}

/** Sums of what the plan tells one by one. */
const PREDICTED: readonly (readonly [MemoryName, readonly string[]])[] = [
  ["weights", ["weights", "weightCache"]],
  ["lora", ["lora"]],
  ["activations", ["activations", "workspace", "expansion"]],
  ["cache", ["cache"]],
  ["driver", ["context"]],
];

function predictedParts(memory: Fields): MemoryPart[] {
  return PREDICTED.map(([name, keys]) => ({
    name,
    bytes: keys.reduce((sum, key) => sum + (numberOf(memory[key]) ?? 0), 0),
  })).filter(({ bytes }) => bytes > 0);
}

function measuredParts(rank: Fields | undefined): MemoryPart[] {
  if (rank === undefined) return [];
  const part = (name: MemoryName, bytes: number | null): MemoryPart[] => (bytes ? [{ name, bytes }] : []);
  return [
    ...part("weights", numberOf(rank["weight_bytes"])),
    ...part("lora", numberOf(rank["lora_bytes"])),
    ...part("activations", numberOf(rank["arena_peak_bytes"])),
    ...part("cache", numberOf(rank["cache_bytes"])),
    ...part("driver", numberOf(fieldsOf(rank["device"])["context_bytes"])),
  ];
}

interface RankFacts {
  readonly rank: number;
  readonly node: string;
  readonly device: string;
  readonly name: string;
  readonly memoryBytes: number;
}

function ranksOf(plan: Fields): RankFacts[] {
  return listOf(plan["ranks"])
    .slice(0, MOST_LISTED)
    .map((rank, index) => ({
      rank: countOf(rank["rank"]) ?? index,
      node: textOf(rank["node"]) ?? "",
      device: textOf(rank["device"]) ?? "",
      name: textOf(rank["name"]) ?? "",
      memoryBytes: numberOf(rank["memory_bytes"]) ?? 0,
    }));
}

function nodesOf({ plan, preflight }: RunRecord): NodeView[] {
  const ranks = ranksOf(plan ?? {});
  const facts = listOf(preflight?.["nodes"]);
  const names = new Set([...ranks.map(({ node }) => node), ...facts.map(({ node }) => textOf(node) ?? "")]);
  return [...names].map((name) => {
    const found = facts.find(({ node }) => node === name);
    return {
      name,
      devices: ranks
        .filter(({ node }) => node === name)
        .map(({ rank, device, name: kind, memoryBytes }) => ({ rank, device, name: kind, memoryBytes })),
      freeMemoryBytes: numberOf(found?.["freeMemoryBytes"]),
      freeDiskBytes: numberOf(found?.["freeDiskBytes"]),
      clockSkewMs: numberOf(found?.["skewMs"]),
    };
  });
}

/** Each direction of a link: planned, measured before the run, and used in the recorded step. */
function linksOf({ plan, preflight, lastStep }: RunRecord): LinkView[] {
  const probes = new Map<string, NonNullable<LinkView["probe"]>>(
    listOf(preflight?.["links"]).flatMap((link) => {
      const [from, to] = ["from", "to"].map((end) => /^\d+/.exec(textOf(link[end]) ?? "")?.[0]);
      const [latencyMs, bytesPerSecond] = [numberOf(link["latencyMs"]), numberOf(link["bytesPerSecond"])];
      if (from === undefined || to === undefined || latencyMs === null || !bytesPerSecond) return [];
      return [[`${from} ${to}`, { latencyMs, bytesPerSecond }] as const];
    }),
  );
  const sent = sentBetween(lastStep);
  const planned = listOf(plan?.["links"]).flatMap(({ ranks, kind }) => {
    const [a, b] = Array.isArray(ranks) ? ranks.map(countOf) : [];
    if (a == null || b == null) return [];
    const own = { kind: textOf(kind) ?? "" };
    return [
      { from: a, to: b, ...own },
      { from: b, to: a, ...own },
    ];
  });
  return planned.slice(0, MOST_LISTED).flatMap((link) => {
    const key = `${link.from} ${link.to}`;
    const [probe, step] = [probes.get(key) ?? null, sent.get(key) ?? null];
    // The reverse direction of a pair that only passes tokens on carries nothing in a step.
    return probe === null && step === null && link.from > link.to ? [] : [{ ...link, probe, step }];
  });
}

async function checkpointsOf({ dir, record }: RunSource): Promise<CheckpointView[]> {
  const there = await listCheckpoints(dir);
  const best = await bestOf([dir, ...there.map(({ path }) => path).reverse()]);
  const found = await Promise.all(
    there.map(async ({ step, path }): Promise<CheckpointView> => {
      const name = `checkpoint-${step}`;
      const { bytes, newest } = await sizeOf(path);
      const savedAt = record.saves.find((save) => save.name === name)?.at ?? newest;
      return { name, step, savedAt, bytes, best: name === best };
    }),
  );
  const gone = record.saves
    .filter(({ name }) => !found.some((one) => one.name === name))
    .map(({ name, step, at }): CheckpointView => ({ name, step, savedAt: at, bytes: null, best: name === best }));
  return [...found, ...gone].sort((a, b) => b.step - a.step);
}

/** By path of a trainer_state.json: its best checkpoint's name, and the time of the file that said so. */
const bests = new Map<string, { readonly at: number; readonly name: string | null }>();
const MOST_BESTS = 1_000;

/** From the first of these folders that has a state. With a hundred thousand log entries it is large, so it is read once. */
async function bestOf(folders: readonly string[]): Promise<string | null> {
  for (const folder of folders) {
    const path = join(folder, STATE_FILE);
    const found = await stat(path).catch(() => null);
    if (found === null) continue;
    const known = bests.get(path);
    if (known?.at === found.mtimeMs) return known.name;
    const told = textOf(fieldsOf(await jsonFile(path))["best_model_checkpoint"]);
    const name = told?.split(/[/\\]/).at(-1) ?? null;
    if (bests.size >= MOST_BESTS) bests.clear();
    bests.set(path, { at: found.mtimeMs, name });
    return name;
  }
  return null;
}

async function sizeOf(dir: string): Promise<{ bytes: number; newest: number | null }> {
  const names = await filesOf(dir).catch(() => [] as string[]);
  const stats = await Promise.all(names.map((name) => stat(join(dir, name)).catch(() => null)));
  const known = stats.filter((one) => one !== null);
  const bytes = known.reduce((sum, { size }) => sum + size, 0);
  return { bytes, newest: known.length === 0 ? null : Math.max(...known.map(({ mtimeMs }) => mtimeMs)) };
}
