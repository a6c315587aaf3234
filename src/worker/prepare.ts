import type { FloatDtype } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import type { LoraSettings } from "../common/lora-settings.ts";
import { SCHEDULE_POLICIES, type SchedulePolicy } from "../common/schedule-policies.ts";
import type { Engine, MicroBatch, NativeAddon } from "../engine/index.ts";
import { initLora } from "../formats/lora-init.ts";
import { storedNames } from "../models/experts.ts";
import { readModelSpec } from "../models/index.ts";
import type { LoraPair__Output } from "../rpc/generated/pipelora/v1/LoraPair.ts";
import type { Prepare__Output } from "../rpc/generated/pipelora/v1/Prepare.ts";
import type { Segment__Output } from "../rpc/generated/pipelora/v1/Segment.ts";
import { buildSchedule, type Instruction } from "../schedule/index.ts";
import type { ReplicaGroup } from "./gradient-sum.ts";
import { loadWeights, type WantedWeight } from "./load-weights.ts";
import type { NodeModel } from "./node-model.ts";
import { describeSegment, engineArch, noiseScale } from "./segments.ts";

export interface PreparedRank {
  readonly engine: Engine;
  readonly threads: number;
  /** All segments of the model, in order. */
  readonly segments: readonly Segment__Output[];
  /** The engine's own number of each of this rank's segments. */
  readonly engineSegment: ReadonlyMap<number, number>;
  /** Elements of B of each LoRA pair that the engine holds, by module. */
  readonly pairSizes: ReadonlyMap<string, number>;
  /** Pair numbers in the order of the engine's gradSquares. */
  readonly moduleIds: Int32Array;
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
    .map((segment) => ({ index: segment.index, ...describeSegment(spec, segment, pairs) }));
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
    await loadWeights(engine, { checkpoint, spec, wanted }, request, signal);
    const held = await engine.loraNames();
    await initialiseLora(engine, held, pairs, request);
    signal.throwIfAborted();
    return {
      engine,
      threads: request.threads,
      segments: request.segments,
      engineSegment,
      pairSizes: new Map(held.map((module) => [module, pairs.get(module)!.r * pairs.get(module)!.out])),
      moduleIds: Int32Array.from(held, (module) => pairs.get(module)!.moduleId),
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

const INITIALISATIONS: Readonly<Record<string, LoraSettings["initLoraWeights"]>> = {
  kaiming: true,
  gaussian: "gaussian",
  random: false,
};

async function initialiseLora(
  engine: Engine,
  held: readonly string[],
  pairs: ReadonlyMap<string, LoraPair__Output>,
  request: Prepare__Output,
): Promise<void> {
  const kind = request.loraInit?.kind ?? "none";
  // "none": the values come with ImportLora.
  if (kind === "none") return;
  for (const module of held) {
    const { a, b } = initLora(
      { name: module, ...pairs.get(module)! },
      { initLoraWeights: INITIALISATIONS[kind]! },
      request.seed,
    );
    await engine.setLora(module, "A", "weight", a);
    await engine.setLora(module, "B", "weight", b);
  }
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
