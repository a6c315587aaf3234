import { bytesOf, float32Of, float64Of } from "../../common/bytes.ts";
import { PipeloraError } from "../../common/errors.ts";
import type { PackedMicroBatches } from "../../data/micro-batches.ts";
import type { DrawnToken, Round } from "../../generation/round.ts";
import type { AdapterStep } from "../../rpc/generated/pipelora/v1/AdapterStep.ts";
import type { AdapterSums__Output } from "../../rpc/generated/pipelora/v1/AdapterSums.ts";
import type { BoundaryState__Output } from "../../rpc/generated/pipelora/v1/BoundaryState.ts";
import type { Failure__Output } from "../../rpc/generated/pipelora/v1/Failure.ts";
import type { ImportMatrices } from "../../rpc/generated/pipelora/v1/ImportMatrices.ts";
import type { Infer } from "../../rpc/generated/pipelora/v1/Infer.ts";
import type { MatrixTensor } from "../../rpc/generated/pipelora/v1/MatrixTensor.ts";
import type { MicroBatches } from "../../rpc/generated/pipelora/v1/MicroBatches.ts";
import type { Prepare } from "../../rpc/generated/pipelora/v1/Prepare.ts";
import type { Prepared__Output } from "../../rpc/generated/pipelora/v1/Prepared.ts";
import type { RankReport__Output } from "../../rpc/generated/pipelora/v1/RankReport.ts";
import type { Update } from "../../rpc/generated/pipelora/v1/Update.ts";
import { addLosses, lossSum, NO_LOSSES } from "../../rpc/loss-sums.ts";
import { fromFailure } from "../../rpc/wire-error.ts";
import type { WorkerConnection } from "../../rpc/worker-connection.ts";
import { drawnToken, roundMessage } from "./round-messages.ts";

/** "initial": what a matrix began with, where that was taken out of the base. */
export type MatrixPartName = "weight" | "exp_avg" | "exp_avg_sq" | "initial";

/** A trained matrix or its optimizer state, by the matrix's name. */
export interface MatrixValues {
  readonly name: string;
  readonly part: MatrixPartName;
  readonly values: Float32Array;
}

/** A step of one adapter in a round. */
export interface RoundPart extends Omit<AdapterStep, "microBatches"> {
  /** Each replica's. */
  readonly batches: readonly PackedMicroBatches[];
}

/** What a batch gave of the principal components of what a module takes. */
export interface InputFit {
  /** Share of the variance that each component explains. */
  readonly explained: Float64Array;
  /** Cosine of each component with that of before; empty: there was none. */
  readonly similar: Float64Array;
}

/** Principal components of what a module takes, [count, in], and their singular values [count]. */
export interface InputComponents {
  readonly components: Float32Array;
  readonly singularValues: Float32Array;
}

export interface EvaluateSums {
  readonly lossSum: number;
  readonly labelTokens: number;
  readonly correctTokens: number;
}

/** A replica's sums of one adapter's step. */
export interface StepSums extends EvaluateSums, Omit<AdapterSums__Output, "losses"> {
  readonly failure: Failure__Output | null;
}

/** What a pipeline does for one adapter. */
export interface PipelineAdapter {
  readonly number: number;
  applyUpdate(update: Update): Promise<void>;
  /** Loss sum and label tokens over all replicas' batches. Error: PL_LOSS_NOT_FINITE. */
  evaluate(batches: readonly PackedMicroBatches[]): Promise<EvaluateSums>;
  /** From the first replica: all hold the same. `names`: of these alone; absent: of all. */
  exportMatrices(parts: readonly MatrixPartName[], names?: readonly string[]): Promise<MatrixValues[]>;
  /** To those who hold them, twins' too. */
  importMatrices(values: readonly MatrixValues[]): Promise<void>;
}

const CAUSE_WAIT_MS = 3_000;
const CLOCK_TRIPS = 10;

/** A rank's clock against this process's. */
export interface Clock {
  readonly offsetMs: number;
  readonly errorMs: number;
}

/** One replica of the pipeline. */
export interface PipelineRoles {
  readonly ranks: readonly number[];
  /** The rank that holds the embedding. */
  readonly first: number;
  /** Those that hold the head, and take its micro-batches in turn. */
  readonly heads: readonly number[];
  /** Ranks by name: who holds each trained matrix. */
  readonly owners: ReadonlyMap<string, number>;
  /** By a matrix's name: where its values stand once more, and under which name. */
  readonly twins: ReadonlyMap<string, { readonly name: string; readonly rank: number }>;
}

export interface RoundOrder {
  readonly round: number;
  /** Whether the next report is to tell all that the ranks did in it. */
  readonly trace: boolean;
  /** Whether the first replica's ranks tell their trained values as they are before it: `onState` hears of them. */
  readonly tellsState: boolean;
}

/** The workers of a run as one model, in one or more replicas: every call but a step's goes to all ranks at once. */
export class Pipeline {
  readonly #members: readonly WorkerConnection[];
  readonly #replicas: readonly PipelineRoles[];
  /** What each call under way does when a rank fails that it awaits nothing of. */
  readonly #running = new Set<(error: unknown) => void>();
  /** A member was lost, or failed at what nobody asked it for: no call waits for ranks that wait for it. */
  #broken: unknown = null;
  #rounds = 0;

  /** `failure` rejects when a member is lost. */
  constructor(members: readonly WorkerConnection[], replicas: readonly PipelineRoles[], failure: Promise<never>) {
    this.#members = members;
    this.#replicas = replicas;
    const fail = (error: unknown) => {
      this.#broken ??= error;
      for (const hear of [...this.#running]) hear(error);
    };
    failure.catch(fail);
    for (const member of members) member.onFailure = fail;
  }

  /** Hears what ranks tell in rounds that tell their state. */
  set onState(hear: ((told: BoundaryState__Output) => void) | null) {
    for (const member of this.#members) member.onState = hear;
  }

  /** Every rank reads its tensors, all at the same time. */
  async prepare(requests: readonly Prepare[]): Promise<Prepared__Output[]> {
    const replies = await this.#all((member, rank) => member.request({ prepare: requests[rank]! }));
    return replies.map((reply) => reply.prepared!);
  }

  /**
   * A step of each of these adapters. A replica's first rank takes the round and answers for all of its ranks. Sums by part, then by
   * replica.
   */
  async runRound({ round, trace, tellsState }: RoundOrder, parts: readonly RoundPart[]): Promise<StepSums[][]> {
    const replies = await this.#allOf(
      this.#replicas.map(({ ranks }) => ranks[0]!),
      (member, rank) => {
        const replica = this.#replicas.indexOf(this.#replicaOf(rank)!);
        const own = parts.map(({ batches, ...part }) => ({ ...part, microBatches: packed(batches[replica]!) }));
        return member.request({ runStep: { step: round, parts: own, trace, tellsState: tellsState && replica === 0 } });
      },
    );
    for (const { ranks } of this.#replicas) for (const rank of ranks) this.#members[rank]!.heard();
    return parts.map((_, part) => replies.map((reply) => stepSums(reply.stepResult!.parts[part]!)));
  }

  /** What is one adapter's, by its place among those that were prepared. */
  adapter(number: number): PipelineAdapter {
    return {
      number,
      applyUpdate: (update) => this.#applyUpdate({ ...update, adapter: number }),
      evaluate: (batches) => this.#evaluate(number, batches),
      exportMatrices: (parts, names = []) => this.#exportMatrices(number, parts, names),
      importMatrices: (values) => this.#import(values, { adapter: number }),
    };
  }

  /**
   * A pass of the first replica, in which what these modules take is decomposed further. `counted`: 1 for each token whose row counts. By
   * module; one of which the batch had fewer rows than components is left out.
   */
  async studyInputs(
    batches: PackedMicroBatches,
    inputs: readonly { readonly module: string; readonly components: number }[],
    counted: Uint8Array,
  ): Promise<Map<string, InputFit>> {
    const study = { inputs: [...inputs], counted: Buffer.from(counted) };
    const replies = await this.#allOf(this.#replicas[0]!.ranks, (member, rank) =>
      member.request({ evaluate: { microBatches: this.#batchesFor(rank, [batches]), adapter: 0, study } }),
    );
    const fits = replies.flatMap((reply) => reply.evaluateResult!.fits);
    return new Map(
      fits.map(({ module, explained, similar }) => [
        module,
        { explained: float64Of(explained), similar: float64Of(similar) },
      ]),
    );
  }

  /** What studyInputs() found of these modules' inputs so far. */
  async readInputs(modules: readonly string[]): Promise<Map<string, InputComponents>> {
    const found = new Map<string, { components?: Float32Array; singularValues?: Float32Array }>();
    await this.#allOf(this.#replicas[0]!.ranks, (member) =>
      member.request({ readInputs: { modules: [...modules] } }, ({ matrixTensor }) => {
        const { name, part, values } = matrixTensor!;
        const key = part === "components" ? "components" : "singularValues";
        found.set(name, { ...found.get(name), [key]: float32Of(values) });
      }),
    );
    return found as Map<string, InputComponents>;
  }

  /** Values for rounds of inference of this number, which is not 0, beside those that the engines hold. */
  shelve(values: readonly MatrixValues[], number: number): Promise<void> {
    return this.#import(values, { shelf: number });
  }

  /** What each rank measured since it was prepared, with the spans of the steps that were traced since the last report. */
  async report(): Promise<RankReport__Output[]> {
    const replies = await this.#all((member) => member.request({ reportRank: {} }));
    return replies.map((reply) => reply.rankReport!);
  }

  /**
   * By rank: what to take off its times to have this process's, and how wrong that can be. Of several round trips the fastest one's, as
   * NTP does it.
   */
  async clocks(): Promise<Clock[]> {
    return this.#all(async (member) => {
      let best: Clock | null = null;
      for (let trip = 0; trip < CLOCK_TRIPS; trip++) {
        const sent = performance.now();
        const { receivedMs, sentMs } = (await member.request({ readClock: {} })).clock!;
        const received = performance.now();
        const errorMs = Math.max(0, received - sent - (sentMs - receivedMs)) / 2;
        const offsetMs = (receivedMs + sentMs - sent - received) / 2 - performance.timeOrigin;
        if (best === null || errorMs < best.errorMs) best = { offsetMs, errorMs };
      }
      return best!;
    });
  }

  async #applyUpdate(update: Update): Promise<void> {
    await this.#all((member) => member.request({ applyUpdate: update }));
  }

  async #evaluate(adapter: number, batches: readonly PackedMicroBatches[]): Promise<EvaluateSums> {
    const replies = await this.#all((member, rank) =>
      member.request({ evaluate: { microBatches: this.#batchesFor(rank, batches), adapter } }),
    );
    const total = { lossSum: 0, labelTokens: 0, correctTokens: 0 };
    for (const { heads } of this.#replicas) {
      let losses = NO_LOSSES;
      for (const rank of heads) losses = addLosses(losses, replies[rank]!.evaluateResult!.losses);
      if (losses.failure !== null) throw fromFailure(losses.failure, "evaluation");
      total.lossSum += lossSum(losses);
      total.labelTokens += losses.labelTokens;
      total.correctTokens += losses.correctTokens;
    }
    return total;
  }

  async #exportMatrices(
    adapter: number,
    parts: readonly MatrixPartName[],
    names: readonly string[],
  ): Promise<MatrixValues[]> {
    const values: MatrixValues[] = [];
    await this.#allOf(this.#replicas[0]!.ranks, (member) =>
      member.request({ exportMatrices: { parts: [...parts], adapter, names: [...names] } }, ({ matrixTensor }) => {
        const { name, part, values: bytes } = matrixTensor!;
        values.push({ name, part: part as MatrixPartName, values: float32Of(bytes) });
      }),
    );
    return values;
  }

  async #import(values: readonly MatrixValues[], where: Pick<ImportMatrices, "adapter" | "shelf">): Promise<void> {
    await this.#all((member, rank) => {
      const { owners, twins } = this.#replicaOf(rank) ?? {};
      const told = values.filter(({ part }) => part !== "initial");
      const own = told.flatMap((value) => {
        const twin = twins?.get(value.name);
        return [
          ...(owners?.get(value.name) === rank ? [value] : []),
          ...(twin?.rank === rank ? [{ ...value, name: twin.name }] : []),
        ];
      });
      return member.requestWithParts(
        { importMatrices: { tensors: own.length, ...where } },
        own.map((value): { matrixTensor: MatrixTensor } => ({
          matrixTensor: { ...value, values: bytesOf(value.values) },
        })),
      );
    });
  }

  /** Makes the first replica's key/value cache, in place of the one before; 0 rows: none. */
  async openCache(sequences: number, rows: number): Promise<void> {
    await this.#allOf(this.#replicas[0]!.ranks, (member) => member.request({ openCache: { sequences, rows } }));
  }

  /** New tokens of some sequences, and what is drawn after them, on the first replica. Several rounds may be under way; they keep their order. */
  async infer(round: Round): Promise<DrawnToken[]> {
    const { first, heads, ranks } = this.#replicas[0]!;
    const [last] = heads as [number];
    const { tokens, draws, ...bounds } = roundMessage(this.#rounds++, round);
    const own = (rank: number): Infer => ({
      ...bounds,
      ...(rank === first ? { tokens } : {}),
      ...(rank === last ? { draws } : {}),
    });
    for (const rank of ranks) if (rank !== last) this.#members[rank]!.notify({ infer: own(rank) });
    const [reply] = await this.#allOf([last], (member) => member.request({ infer: own(last) }));
    return reply!.inferResult!.tokens.map(drawnToken);
  }

  /** Tokens go to the rank of the embedding, labels and weights to those of the head; all need the rows' bounds. */
  #batchesFor(rank: number, batches: readonly PackedMicroBatches[]): MicroBatches {
    const replica = this.#replicaOf(rank);
    if (replica === undefined) return {};
    const { tokens, targets, weights, ...bounds } = packed(batches[this.#replicas.indexOf(replica)]!);
    return {
      ...bounds,
      ...(rank === replica.first ? { tokens } : {}),
      ...(replica.heads.includes(rank) ? { targets, weights } : {}),
    };
  }

  /** Undefined for a rank that no replica needs. */
  #replicaOf(rank: number): PipelineRoles | undefined {
    return this.#replicas.find(({ ranks }) => ranks.includes(rank));
  }

  #all<T>(call: (member: WorkerConnection, rank: number) => Promise<T>): Promise<T[]> {
    return this.#allOf([...this.#members.keys()], call);
  }

  /**
   * The first failure decides, whatever the other ranks wait for; but one that a rank only suffers from (a link of a peer that
   * failed) leaves a moment for its cause to come.
   */
  #allOf<T>(ranks: readonly number[], call: (member: WorkerConnection, rank: number) => Promise<T>): Promise<T[]> {
    return new Promise((resolve, reject) => {
      const results: T[] = [];
      let left = ranks.length;
      let suffering: NodeJS.Timeout | null = null;
      const fail = (error: unknown) => {
        if (!this.#running.has(fail)) return;
        if (error instanceof PipeloraError && error.code === "PL_LINK_FAILED") {
          suffering ??= setTimeout(() => end(() => reject(error)), CAUSE_WAIT_MS);
        } else end(() => reject(error));
      };
      const end = (settle: () => void) => {
        this.#running.delete(fail);
        if (suffering !== null) clearTimeout(suffering);
        settle();
      };
      this.#running.add(fail);
      if (this.#broken !== null) fail(this.#broken);
      ranks.forEach((rank, index) => {
        call(this.#members[rank]!, rank).then((result) => {
          results[index] = result;
          left--;
          if (left === 0 && suffering === null) end(() => resolve(results));
        }, fail);
      });
    });
  }
}

function stepSums({ losses, ...rest }: AdapterSums__Output): StepSums {
  const { labelTokens, correctTokens, failure } = addLosses(NO_LOSSES, losses);
  return { ...rest, lossSum: lossSum(losses), labelTokens, correctTokens, failure };
}

function packed({ batchRows, rowTokens, rowIds, tokens, targets, weights }: PackedMicroBatches) {
  return {
    batchRows: bytesOf(batchRows),
    rowTokens: bytesOf(rowTokens),
    rowIds: bytesOf(rowIds),
    tokens: bytesOf(tokens),
    targets: bytesOf(targets),
    weights: bytesOf(weights),
  };
}
