import type { FloatDtype } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import type { LoraSettings } from "../common/lora-settings.ts";
import { SCHEDULE_POLICIES, type SchedulePolicy } from "../common/schedule-policies.ts";
import type { Engine, MicroBatch, NativeAddon } from "../engine/index.ts";
import { initLora } from "../formats/lora-init.ts";
import { storedNames } from "../models/experts.ts";
import { readModelSpec } from "../models/index.ts";
import { pairNames } from "../models/kinds/lora.ts";
import type { LoraPair__Output } from "../rpc/generated/pipelora/v1/LoraPair.ts";
import type { Prepare__Output } from "../rpc/generated/pipelora/v1/Prepare.ts";
import type { Segment__Output } from "../rpc/generated/pipelora/v1/Segment.ts";
import { buildSchedule, type Instruction } from "../schedule/index.ts";
import { baseInit, type Taken, takeFrom } from "./base-inits.ts";
import type { ReplicaGroup } from "./gradient-sum.ts";
import { loadWeights, quantizationOf, type ShardSource, type WantedWeight } from "./load-weights.ts";
import type { NodeModel } from "./node-model.ts";
import { describeSegment, engineArch, noiseScale } from "./segments.ts";

export interface PreparedRank {
  readonly engine: Engine;
  readonly threads: number;
  /** All segments of the model, in order. */
  readonly segments: readonly Segment__Output[];
  /** The engine's own number of each of this rank's segments. */
  readonly engineSegment: ReadonlyMap<number, number>;
  /** Elements of B of each LoRA pair that the engine holds, by its name. */
  readonly pairSizes: ReadonlyMap<string, number>;
  /** Of each matrix that the engine holds, in its order: its position among all that are trained, and the optimizer's group of it. */
  readonly matrixIds: Int32Array;
  readonly groups: readonly number[];
  /** What matrices of pairs began with whose product was taken out of the base. */
  readonly initial: ReadonlyMap<string, Float32Array>;
  readonly seed: number;
  /** As every micro-batch is told. */
  readonly regularisation: Pick<MicroBatch, "labelSmoothing" | "noiseAlpha">;
  /** Null with one replica of the pipeline. */
  readonly replicas: ReplicaGroup | null;
  /** This rank's list for so many micro-batches. */
  instructions(microBatches: number, kind: "train" | "evaluate"): readonly Instruction[];
}

/** Where an engine is made, and until when it is wanted. */
export interface EngineHost {
  readonly device: string;
  readonly addon: NativeAddon;
  /** Given up between two tensors once this is aborted; the engine is closed then. */
  readonly signal: AbortSignal;
}

/**
 * Makes this rank's engine: its segments, their weights read from this node's checkpoint (fetched where it has yet to be), first LoRA values.
 * Errors: PL_PROTOCOL_MISMATCH, PL_CHECKPOINT_INVALID, PL_TENSOR_MISMATCH, PL_QUANTIZATION_INVALID, PL_OUT_OF_MEMORY, PL_DEVICE_UNAVAILABLE.
 */
export async function prepareRank(
  request: Prepare__Output,
  model: NodeModel,
  rank: number,
  { device, addon, signal }: EngineHost,
): Promise<PreparedRank> {
  const spec = await readModelSpec(model.dir);
  if (!(SCHEDULE_POLICIES as readonly string[]).includes(request.schedule)) {
    throw new PipeloraError("PL_PROTOCOL_MISMATCH", `a Prepare names the schedule "${request.schedule}"`);
  }
  const pairs = new Map(request.lora.map((pair) => [pair.module, pair]));
  const own = request.segments
    .filter((segment) => segment.rank === rank)
    .map((segment) => ({ index: segment.index, ...describeSegment(spec, segment, pairs, request.trained) }));
  const checkpoint = await model.openCheckpoint(
    spec.tied,
    storedNames(
      spec,
      own.flatMap(({ weights }) => weights),
    ),
    request.modelFingerprint,
  );
  signal.throwIfAborted();
  const engine = await addon.openEngine({
    device,
    threads: request.threads,
    computeDtype: request.computeDtype as FloatDtype,
    arch: engineArch(spec, request.computeDtype as FloatDtype),
    arenaBytes: request.arenaBytes,
    hostBytes: request.hostBytes,
  });
  try {
    const engineSegment = new Map<number, number>();
    const wanted: WantedWeight[] = [];
    for (const { index, description, weights } of own) {
      const number = await engine.addSegment({ ...description, fp8: request.fp8 });
      engineSegment.set(index, number);
      wanted.push(...weights.map((name) => ({ segment: number, name })));
    }
    const made = new Map<string, Taken>();
    const takes = takings(request, pairs, addon, made);
    await loadWeights(engine, { checkpoint, spec, wanted, takes }, request, signal);
    const held = await engine.matrixNames();
    const known = new Map(request.matrices.map(({ name, group }, id) => [name, { id, group }]));
    const places = held.map((name) => {
      const found = known.get(name);
      if (found === undefined) throw new PipeloraError("PL_PROTOCOL_MISMATCH", `a Prepare names no matrix ${name}`);
      return found;
    });
    await initialiseLora(engine, held, { pairs, made }, request);
    signal.throwIfAborted();
    return {
      engine,
      threads: request.threads,
      segments: request.segments,
      engineSegment,
      pairSizes: new Map(
        [...pairs].flatMap(([module, { embedding, r, out }]) => {
          const { b } = pairNames(module, embedding ? "embedding" : undefined);
          return held.includes(b) ? [[b, r * out] as const] : [];
        }),
      ),
      matrixIds: Int32Array.from(places, ({ id }) => id),
      groups: places.map(({ group }) => group),
      initial: new Map(
        [...made].flatMap(([module, { a, b, rest }]) => {
          const names = pairNames(module);
          return rest === null
            ? []
            : ([
                [names.a, a],
                [names.b, b],
              ] as const);
        }),
      ),
      seed: request.seed,
      regularisation: {
        labelSmoothing: request.labelSmoothing,
        noiseAlpha: request.neftuneNoiseAlpha * noiseScale(spec),
      },
      replicas: replicaGroup(request.replicaRanks, rank),
      instructions: scheduleOf(request, rank),
    };
  } catch (error) {
    await engine.close();
    throw error;
  }
}

function replicaGroup(ranks: readonly number[], rank: number): ReplicaGroup | null {
  return ranks.length > 1 ? { ranks, position: ranks.indexOf(rank) } : null;
}

const INITIALISATIONS: Readonly<Record<string, LoraSettings["initLoraWeights"]>> = { kaiming: true, random: false };

/** What makes pairs of weights as these are loaded, by the weight's name: it leaves them in `made`. */
function takings(
  request: Prepare__Output,
  pairs: ReadonlyMap<string, LoraPair__Output>,
  addon: NativeAddon,
  made: Map<string, Taken>,
): ShardSource["takes"] {
  const init = baseInit(request.loraInit?.kind ?? "none");
  if (init === null) return new Map();
  const { seed, threads } = request;
  const making = { addon, seed, threads, quantization: quantizationOf(request.quantization) };
  const take = (pair: LoraPair__Output) => async (weight: Float32Array) => {
    const taken = await takeFrom(weight, pair, init, { ...making, dtype: request.holdDtype as FloatDtype });
    made.set(pair.module, { ...taken, rest: taken.rest === null ? null : EMPTY });
    return taken.rest;
  };
  return new Map([...pairs].map(([module, pair]) => [`${module}.weight`, take(pair)]));
}

/** That something was taken; the rest itself is the engine's. */
const EMPTY = new Float32Array(0);

async function initialiseLora(
  engine: Engine,
  held: readonly string[],
  { pairs, made }: { readonly pairs: ReadonlyMap<string, LoraPair__Output>; readonly made: ReadonlyMap<string, Taken> },
  request: Prepare__Output,
): Promise<void> {
  const kind = request.loraInit?.kind ?? "none";
  // "none": the values come with ImportMatrices.
  if (kind === "none") return;
  for (const [module, pair] of pairs) {
    const names = pairNames(module, pair.embedding ? "embedding" : undefined);
    if (!held.includes(names.a)) continue;
    const { a, b } =
      made.get(module) ??
      initLora({ name: module, ...pair }, { initLoraWeights: INITIALISATIONS[kind] ?? kind }, request.seed);
    await engine.setMatrix(names.a, "weight", a);
    await engine.setMatrix(names.b, "weight", b);
  }
  await engine.firstValues();
}

/**
 * Lists are the same for every step of as many micro-batches, so each is made once. A schedule numbers the ranks that hold segments
 * from 0; here they are one replica's ranks among all of the run.
 */
function scheduleOf(request: Prepare__Output, rank: number): PreparedRank["instructions"] {
  const made = new Map<string, readonly Instruction[]>();
  const ranks = [...new Set(request.segments.map((segment) => segment.rank))].sort((a, b) => a - b);
  const segments = request.segments.map((segment) => ({ rank: ranks.indexOf(segment.rank) }));
  const position = ranks.indexOf(rank);
  return (microBatches, kind) => {
    if (microBatches === 0 || position < 0) return [];
    const key = `${kind}/${microBatches}`;
    const known = made.get(key);
    if (known !== undefined) return known;
    const lists = buildSchedule({
      segments,
      microBatches,
      policy: request.schedule as SchedulePolicy,
      needsBackward: (segment) => kind === "train" && request.segments[segment]!.needsBackward,
    });
    const list = lists[position]!.map((instruction) =>
      instruction.peer === undefined ? instruction : { ...instruction, peer: ranks[instruction.peer]! },
    );
    made.set(key, list);
    return list;
  };
}
