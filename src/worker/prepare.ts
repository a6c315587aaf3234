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
  /** What tensors are rounded to between ranks; null: they go as they are. */
  readonly linkDtype: LinkDtype | null;
  readonly threads: number;
  /** All segments of the model, in order. */
  readonly segments: readonly Segment__Output[];
  /** The engine's own number of each of this rank's segments. */
  readonly engineSegment: ReadonlyMap<number, number>;
  /** By number. */
  readonly adapters: readonly PreparedAdapter[];
  /** Null with one replica of the pipeline. */
  readonly replicas: ReplicaGroup | null;
  /** Ends the engine. Its frozen weights stay where the host keeps some. */
  leave(): Promise<void>;
  /** Where its layers came from. */
  readonly loaded: LoadedLayers;
  /** This rank's list for so many micro-batches. */
  instructions(microBatches: number, kind: "train" | "evaluate"): readonly Instruction[];
}

/** How many of a rank's layers this process held already, how many were read, and how much of the checkpoint that was. */
export interface LoadedLayers {
  readonly takenOver: number;
  readonly read: number;
  readonly readBytes: number;
}

/** What is an adapter's own on this rank. */
export interface PreparedAdapter {
  /** Elements of B of each LoRA pair that the engine holds, by its name. */
  readonly pairSizes: ReadonlyMap<string, number>;
  /** Of each matrix that the engine holds, in its order, the optimizer's group of it. */
  readonly groups: readonly number[];
  /** Of those but twins: its place in that order, its name, and its position among all that are trained. */
  readonly places: readonly number[];
  readonly names: readonly string[];
  readonly matrixIds: Int32Array;
  /** A matrix that stands in two places, of which this rank has one or both; null: none does. */
  readonly shared: SharedMatrix | null;
  /** What matrices of pairs began with whose product was taken out of the base. */
  readonly initial: ReadonlyMap<string, Float32Array>;
  /** As every micro-batch is told. */
  readonly regularisation: Pick<MicroBatch, "adapter" | "seed" | "labelSmoothing" | "noiseAlpha">;
}

/** Where an engine is made, and until when it is wanted. */
export interface EngineHost {
  readonly device: string;
  readonly addon: NativeAddon;
  /** Given up between two tensors once this is aborted; the engine is closed then. */
  readonly signal: AbortSignal;
  /** Weights that this process holds of an earlier engine, and the run that they are of; absent: none are taken over, and none left. */
  readonly kept?: { readonly held: HeldLayers; readonly run: string };
}

/**
 * Makes this rank's engine: its segments, their weights taken over from an earlier engine of this run or read from this node's checkpoint
 * (fetched where it has yet to be), first LoRA values.
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
      // An engine that has failed leaves nothing.
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
      // What is whole by now need not be read again by a session that follows.
      if (signal.aborted) await leave();
      else await engine.close();
      throw error;
    }
  } catch (error) {
    left?.frozen.free();
    throw error;
  }
}

/** Names all that decides a layer's frozen weights: the run and its model, how they are held and computed with, and what adapters take out of them. */
function frozenBase(request: Prepare__Output, dir: string, run: string): string {
  const { modelFingerprint, holdDtype, computeDtype, threads, quantization, fp8, adapters } = request;
  const takers = adapters.flatMap((adapter, number) =>
    baseInit(adapter.loraInit?.kind ?? "none") === null ? [] : [{ number, ...adapter }],
  );
  // Weights have room for the pairs that come with them: those that EVA's pass held alone have none.
  const paired = adapters.some(({ lora }) => lora.length > 0);
  const all = [run, dir, modelFingerprint, holdDtype, computeDtype, threads, quantization, fp8, takers, paired];
  return createHash("sha256").update(JSON.stringify(all)).digest("hex");
}

/** A segment's layers as the engine names them; of its blocks the first ones are cached. */
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

/** The ranks of this replica that hold the embedding and the head: a head that learns is one rank's. */
interface Ends {
  readonly first: number;
  readonly last: number;
}

function endsOf({ segments }: Prepare__Output): Ends {
  return { first: segments[0]?.ranks[0] ?? 0, last: segments.at(-1)?.ranks[0] ?? 0 };
}

interface AdapterRequest extends Adapter__Output {
  readonly pairs: ReadonlyMap<string, LoraPair__Output>;
  /** Pairs that were made of weights as these were loaded. */
  readonly made: Map<string, Taken>;
}

/** First values of an adapter, and what there is to know of it. `number`: null on a rank that holds no segment. */
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

/** What makes pairs of weights as these are loaded, by the weight's name: it leaves them in each adapter's `made`. */
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

/** What is made of a weight, once for all adapters that begin with the same. */
interface Take {
  readonly makers: readonly Map<string, Taken>[];
  readonly take: (weight: Float32Array) => Promise<Taken>;
}

/** What is left of the weight; null: all of it. Error: PL_PROTOCOL_MISMATCH where adapters would leave different rests. */
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

/** That something was taken; the rest itself is the engine's. */
const EMPTY = new Float32Array(0);

async function initialiseLora(
  engine: Engine,
  adapter: number,
  held: readonly string[],
  { pairs, made, loraInit, seed }: AdapterRequest,
): Promise<void> {
  const kind = loraInit?.kind ?? "none";
  // "none": the values come with ImportMatrices.
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
 * Lists are the same for every step of as many micro-batches, so each is made once. A schedule numbers the ranks that hold segments
 * from 0; here they are one replica's ranks among all of the run.
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
