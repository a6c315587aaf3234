import { createHash } from "node:crypto";
import { type FloatDtype, LINK_DTYPES, type LinkDtype } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import type { LoraSettings } from "../common/lora-settings.ts";
import { SCHEDULE_POLICIES, type SchedulePolicy } from "../common/schedule-policies.ts";
import type { Engine, KeptLayer, MicroBatch, NativeAddon } from "../engine/index.ts";
import { initLora } from "../formats/lora-init.ts";
import { storedNames } from "../models/experts.ts";
import { readModelSpec } from "../models/index.ts";
import { pairNames } from "../models/kinds/lora.ts";
import type { LayerSpec, ModelSpec } from "../models/spec.ts";
import type { Adapter__Output } from "../rpc/generated/pipelora/v1/Adapter.ts";
import type { LoraPair__Output } from "../rpc/generated/pipelora/v1/LoraPair.ts";
import type { Prepare__Output } from "../rpc/generated/pipelora/v1/Prepare.ts";
import type { Segment__Output } from "../rpc/generated/pipelora/v1/Segment.ts";
import { buildSchedule, type Instruction } from "../schedule/index.ts";
import { describeSegment, engineArch, noiseScale } from "./segments.ts";
import type { ReplicaGroup } from "./steps/gradient-sum.ts";
import type { SharedMatrix } from "./steps/shared-matrix.ts";
import { baseInit, type Taken, takeFrom } from "./weights/base-inits.ts";
import type { HeldLayers } from "./weights/held-layers.ts";
import { loadWeights, quantizationOf, type ShardSource, type WantedWeight } from "./weights/load-weights.ts";
import type { NodeModel } from "./weights/node-model.ts";

export interface PreparedRank {
  readonly engine: Engine;
  /** The dtype to which links round tensors; null: they are sent unrounded. */
  readonly linkDtype: LinkDtype | null;
  readonly threads: number;
  /** All segments of the model, in order. */
  readonly segments: readonly Segment__Output[];
  /** This rank's segments: index in `segments` -> the engine's number. */
  readonly engineSegment: ReadonlyMap<number, number>;
  /** By number. */
  readonly adapters: readonly PreparedAdapter[];
  /** Null if the pipeline has one replica. */
  readonly replicas: ReplicaGroup | null;
  /** Ends the engine. Its frozen weights stay with the host if that keeps some. */
  leave(): Promise<void>;
  /** How its layers were loaded. */
  readonly loaded: LoadedLayers;
  /** This rank's instruction list for this many micro-batches. */
  instructions(microBatches: number, kind: "train" | "evaluate"): readonly Instruction[];
}

/** How many of a rank's layers this process already held, how many it read, and how many bytes of the checkpoint that was. */
export interface LoadedLayers {
  readonly takenOver: number;
  readonly read: number;
  readonly readBytes: number;
}

/** This rank's part of one adapter. */
export interface PreparedAdapter {
  /** Elements of B of each LoRA pair that the engine holds, by its name. */
  readonly pairSizes: ReadonlyMap<string, number>;
  /** The optimizer's group of each matrix that the engine holds, in the engine's order. */
  readonly groups: readonly number[];
  /** The same matrices without twins: place in the engine's order, name, and position among all trained matrices. */
  readonly places: readonly number[];
  readonly names: readonly string[];
  readonly matrixIds: Int32Array;
  /** The matrix that is used in two places, if this rank holds one or both of them; else null. */
  readonly shared: SharedMatrix | null;
  /** First values of the pairs whose product was subtracted from the base. */
  readonly initial: ReadonlyMap<string, Float32Array>;
  /** Settings that every micro-batch gets. */
  readonly regularisation: Pick<MicroBatch, "adapter" | "seed" | "labelSmoothing" | "noiseAlpha">;
}

/** The surroundings in which an engine is made. */
export interface EngineHost {
  readonly device: string;
  readonly addon: NativeAddon;
  /** When aborted, loading stops after the current tensor and the engine is closed. */
  readonly signal: AbortSignal;
  /** Weights that this process holds from an earlier engine, and their run. Absent: none are taken over, and none are left behind. */
  readonly kept?: { readonly held: HeldLayers; readonly run: string };
}

/**
 * Makes this rank's engine, with its segments, their weights and the first LoRA values. Weights are taken over from an earlier engine of this
 * run, or read from this node's checkpoint, which is fetched first if need be.
 * Errors: PL_PROTOCOL_MISMATCH, PL_CHECKPOINT_INVALID, PL_TENSOR_MISMATCH, PL_QUANTIZATION_INVALID, PL_OUT_OF_MEMORY, PL_DEVICE_UNAVAILABLE.
 */
export async function prepareRank(
  request: Prepare__Output,
  model: NodeModel,
  rank: number,
  { device, addon, signal, kept }: EngineHost,
): Promise<PreparedRank> {
  const spec = await readModelSpec(model.dir);
  if (!(SCHEDULE_POLICIES as readonly string[]).includes(request.schedule)) {
    throw new PipeloraError("PL_PROTOCOL_MISMATCH", `a Prepare names the schedule "${request.schedule}"`);
  }
  const linkDtype = LINK_DTYPES.find((dtype) => dtype === request.linkDtype) ?? null;
  if (linkDtype === null && request.linkDtype !== "") {
    throw new PipeloraError("PL_PROTOCOL_MISMATCH", `a Prepare names the link dtype "${request.linkDtype}"`);
  }
  if (request.adapters.length === 0) {
    throw new PipeloraError("PL_PROTOCOL_MISMATCH", "a Prepare came without an adapter");
  }
  const base = frozenBase(request, model.dir, kept?.run ?? "");
  const left = kept?.held.take(base) ?? null;
  try {
    const adapters = request.adapters.map((adapter, number) => ({
      ...adapter,
      pairs: new Map(adapter.lora.map((pair) => [pair.module, pair])),
      made: new Map(left?.made[number]),
    }));
    const own = request.segments
      .filter(({ ranks }) => ranks.includes(rank))
      .map((segment) => ({
        segment,
        adapted: adapters.map(({ pairs, trained }) => describeSegment(spec, segment, pairs, trained)),
      }));
    const checkpoint = await model.openCheckpoint(
      spec,
      storedNames(
        spec,
        own.flatMap(({ adapted }) => adapted[0]!.weights),
      ),
      request.modelFingerprint,
    );
    signal.throwIfAborted();
    const layers = own.flatMap(({ segment }) => keptLayers(spec, segment));
    const keep = layers.filter(({ layer }) => left?.frozen.layers.includes(layer) === true);
    const engine = await addon.openEngine({
      device,
      threads: request.threads,
      computeDtype: request.computeDtype as FloatDtype,
      arch: engineArch(spec, request.computeDtype as FloatDtype),
      arenaBytes: request.arenaBytes,
      hostBytes: request.hostBytes,
      ...(left === null ? {} : { frozen: left.frozen, keep }),
    });
    const leave = async () => {
      const modules = new Set(own.flatMap(({ adapted }) => adapted[0]!.weights));
      const made = adapters.map(({ made: all }) => new Map([...all].filter(([name]) => modules.has(`${name}.weight`))));
      // A failed engine leaves no weights behind.
      const frozen = kept === undefined ? null : await engine.release().catch(() => null);
      if (frozen === null) await engine.close();
      else kept!.held.put({ base, frozen, made });
    };
    try {
      const engineSegment = new Map<number, number>();
      const wanted: WantedWeight[] = [];
      for (const { segment, adapted } of own) {
        const [first, ...others] = adapted;
        const number = await engine.addSegment({ ...first!.description, fp8: request.fp8 });
        for (const { description } of others) await engine.addAdapter(number, description.layers);
        engineSegment.set(segment.index, number);
        const missing = new Set(await engine.missingWeights(number));
        wanted.push(...first!.weights.filter((name) => missing.has(name)).map((name) => ({ segment: number, name })));
      }
      const takes = takings(request, adapters, addon);
      const readBytes = await loadWeights(engine, { checkpoint, spec, wanted, takes }, request, signal);
      const prepared: PreparedAdapter[] = [];
      for (const [number, adapter] of adapters.entries()) {
        prepared.push(
          await prepareAdapter(engine, own.length === 0 ? null : number, adapter, {
            noise: noiseScale(spec),
            ends: endsOf(request),
          }),
        );
        signal.throwIfAborted();
      }
      return {
        engine,
        linkDtype,
        leave,
        threads: request.threads,
        segments: request.segments,
        engineSegment,
        adapters: prepared,
        replicas: replicaGroup(request.replicaRanks, rank),
        loaded: { takenOver: keep.length, read: layers.length - keep.length, readBytes },
        instructions: scheduleOf(request, rank),
      };
    } catch (error) {
      // Layers that are complete by now need not be read again by a later session.
      if (signal.aborted) await leave();
      else await engine.close();
      throw error;
    }
  } catch (error) {
    left?.frozen.free();
    throw error;
  }
}

/**
 * A name for everything that decides a layer's frozen weights: the run, its model, how weights are held and used, and what adapters
 * subtract from them.
 */
function frozenBase(request: Prepare__Output, dir: string, run: string): string {
  const { modelFingerprint, holdDtype, computeDtype, threads, quantization, fp8, adapters } = request;
  const takers = adapters.flatMap((adapter, number) =>
    baseInit(adapter.loraInit?.kind ?? "none") === null ? [] : [{ number, ...adapter }],
  );
  // A weight is allocated with room for its pairs. Weights that were loaded for EVA alone have no such room.
  const paired = adapters.some(({ lora }) => lora.length > 0);
  const all = [run, dir, modelFingerprint, holdDtype, computeDtype, threads, quantization, fp8, takers, paired];
  return createHash("sha256").update(JSON.stringify(all)).digest("hex");
}

/** A segment's layers as the engine names them. The first `cachedBlocks` of its blocks are cached. */
function keptLayers(spec: ModelSpec, { firstLayer, lastLayer, cachedBlocks }: Segment__Output): KeptLayer[] {
  let blocks = 0;
  return spec.layers.slice(firstLayer, lastLayer + 1).map((layer: LayerSpec) => {
    if (layer.kind !== "block") return { layer: layer.kind, expanded: false };
    return { layer: `block ${layer.index}`, expanded: blocks++ < cachedBlocks };
  });
}

function replicaGroup(ranks: readonly number[], rank: number): ReplicaGroup | null {
  return ranks.length > 1 ? { ranks, position: ranks.indexOf(rank) } : null;
}

/** The ranks of this replica that hold the embedding and the head. A trained head has one rank. */
interface Ends {
  readonly first: number;
  readonly last: number;
}

function endsOf({ segments }: Prepare__Output): Ends {
  return { first: segments[0]?.ranks[0] ?? 0, last: segments.at(-1)?.ranks[0] ?? 0 };
}

interface AdapterRequest extends Adapter__Output {
  readonly pairs: ReadonlyMap<string, LoraPair__Output>;
  /** Pairs made from weights while these were loaded. */
  readonly made: Map<string, Taken>;
}

/** Gives an adapter its first values, and describes it. `number`: the engine's; null on a rank without a segment. */
async function prepareAdapter(
  engine: Engine,
  number: number | null,
  adapter: AdapterRequest,
  { noise, ends }: { readonly noise: number; readonly ends: Ends },
): Promise<PreparedAdapter> {
  const { pairs, made, matrices, trained, seed, labelSmoothing, neftuneNoiseAlpha } = adapter;
  const held = number === null ? [] : await engine.matrixNames(number);
  const known = new Map(matrices.map(({ name, group }, id) => [name, { id, group }]));
  const twins = new Map(trained.filter(({ twinOf }) => twinOf !== "").map(({ matrix, twinOf }) => [matrix, twinOf]));
  const all = held.map((name, place) => {
    const found = known.get(twins.get(name) ?? name);
    if (found === undefined) throw new PipeloraError("PL_PROTOCOL_MISMATCH", `a Prepare names no matrix ${name}`);
    return { ...found, name, place };
  });
  const own = all.filter(({ name }) => !twins.has(name));
  const [shared] = [...twins].filter((names) => names.some((name) => held.includes(name)));
  if (number !== null) await initialiseLora(engine, number, held, adapter);
  return {
    pairSizes: new Map(
      [...pairs].flatMap(([module, { embedding, r, out }]) => {
        const { b } = pairNames(module, embedding ? "embedding" : undefined);
        return held.includes(b) ? [[b, r * out] as const] : [];
      }),
    ),
    groups: all.map(({ group }) => group),
    places: own.map(({ place }) => place),
    names: own.map(({ name }) => name),
    matrixIds: Int32Array.from(own, ({ id }) => id),
    shared: shared === undefined ? null : { name: shared[1], rank: ends.first, twin: shared[0], twinRank: ends.last },
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
    regularisation: { adapter: number ?? 0, seed, labelSmoothing, noiseAlpha: neftuneNoiseAlpha * noise },
  };
}

const INITIALISATIONS: Readonly<Record<string, LoraSettings["initLoraWeights"]>> = { kaiming: true, random: false };

/** By weight's name: a function that makes pairs from the weight while it is loaded, and stores them in each adapter's `made`. */
function takings(
  request: Prepare__Output,
  adapters: readonly AdapterRequest[],
  addon: NativeAddon,
): ShardSource["takes"] {
  const takes = new Map<string, Map<string, Take>>();
  const { threads } = request;
  for (const { pairs, made, loraInit, seed } of adapters) {
    const init = baseInit(loraInit?.kind ?? "none");
    if (init === null) continue;
    const making = { addon, seed, threads, quantization: quantizationOf(request.quantization) };
    for (const [module, pair] of pairs) {
      const name = `${module}.weight`;
      const same = JSON.stringify([init, pair.r, pair.scale, seed]);
      const all = takes.get(name) ?? new Map<string, Take>();
      takes.set(name, all);
      const makers = all.get(same)?.makers ?? [];
      all.set(same, {
        makers: [...makers, made],
        take: (weight) => takeFrom(weight, pair, init, { ...making, dtype: request.holdDtype as FloatDtype }),
      });
    }
  }
  return new Map(
    [...takes].map(([name, all]) => {
      const module = name.slice(0, -".weight".length);
      return [name, (weight: Float32Array) => takeAll(weight, module, [...all.values()])] as const;
    }),
  );
}

/** A pair to make from a weight, once for all adapters with the same initialisation. */
interface Take {
  readonly makers: readonly Map<string, Taken>[];
  readonly take: (weight: Float32Array) => Promise<Taken>;
}

/** The weight after subtraction; null if nothing is subtracted. Errors: PL_PROTOCOL_MISMATCH if adapters would leave different weights. */
async function takeAll(weight: Float32Array, module: string, all: readonly Take[]): Promise<Float32Array | null> {
  let rest: Float32Array | null = null;
  for (const { makers, take } of all) {
    const taken = await take(weight);
    if (taken.rest !== null && all.length > 1) {
      throw new PipeloraError("PL_PROTOCOL_MISMATCH", `adapters of one Prepare take different parts out of ${module}`);
    }
    rest = taken.rest;
    for (const made of makers) made.set(module, { ...taken, rest: rest === null ? null : EMPTY });
  }
  return rest;
}

/** Stands for "something was subtracted": the engine holds the remaining weight itself. */
const EMPTY = new Float32Array(0);

async function initialiseLora(
  engine: Engine,
  adapter: number,
  held: readonly string[],
  { pairs, made, loraInit, seed }: AdapterRequest,
): Promise<void> {
  const kind = loraInit?.kind ?? "none";
  // "none": ImportMatrices brings the values.
  if (kind === "none") return;
  for (const [module, pair] of pairs) {
    const names = pairNames(module, pair.embedding ? "embedding" : undefined);
    if (!held.includes(names.a)) continue;
    const { a, b } =
      made.get(module) ?? initLora({ name: module, ...pair }, { initLoraWeights: INITIALISATIONS[kind] ?? kind }, seed);
    await engine.setMatrix(names.a, "weight", a, adapter);
    await engine.setMatrix(names.b, "weight", b, adapter);
  }
  await engine.firstValues(adapter);
}

/**
 * Makes instruction lists, each once, because steps with the same number of micro-batches have the same list. A schedule numbers the ranks of
 * one replica from 0; the lists name them by their numbers in the run.
 */
function scheduleOf(request: Prepare__Output, rank: number): PreparedRank["instructions"] {
  const made = new Map<string, readonly Instruction[]>();
  const ranks = [...new Set(request.segments.flatMap((segment) => segment.ranks))].sort((a, b) => a - b);
  const segments = request.segments.map(({ ranks: own, forwardSeconds: forward, backwardSeconds: backward }) => ({
    ranks: own.map((one) => ranks.indexOf(one)),
    ...(forward > 0 ? { forward, backward } : {}),
  }));
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
