import { float32Of, int32Of } from "../common/bytes.ts";
import { PipeloraError } from "../common/errors.ts";
import type { CachedSequences, DeviceTensor } from "../engine/index.ts";
import { activationKey } from "../links/link.ts";
import type { Draw__Output } from "../rpc/generated/pipelora/v1/Draw.ts";
import type { DrawnToken } from "../rpc/generated/pipelora/v1/DrawnToken.ts";
import type { Infer__Output } from "../rpc/generated/pipelora/v1/Infer.ts";
import type { InferResult } from "../rpc/generated/pipelora/v1/InferResult.ts";
import type { OpenCache__Output } from "../rpc/generated/pipelora/v1/OpenCache.ts";
import type { Segment__Output } from "../rpc/generated/pipelora/v1/Segment.ts";
import { toFailure } from "../rpc/wire-error.ts";
import type { RankLinks } from "./links.ts";
import { type Boundary, fromDevice, toDevice } from "./tensors.ts";
import { AdapterShelf } from "./weights/adapter-shelf.ts";

/** A rank's part of the model. */
export interface RankSegments extends Boundary {
  /** All segments of the model, in order. */
  readonly segments: readonly Segment__Output[];
  readonly rank: number;
  /** This rank's segments: index in `segments` -> the engine's number. */
  readonly engineSegment: ReadonlyMap<number, number>;
  /** Elements of B of each LoRA pair that the engine holds. */
  readonly pairSizes: ReadonlyMap<string, number>;
}

interface Round {
  readonly name: string;
  readonly adapter: number;
  readonly sequences: CachedSequences;
  readonly tokens: Int32Array;
  readonly draws: readonly Draw__Output[];
}

/**
 * One rank's part in generation, round by round. Each segment takes rounds in order. A rank with several segments can compute one round in one
 * of them while the next waits for the input of another round.
 */
export class Inference {
  readonly #own: RankSegments;
  readonly #links: RankLinks;
  readonly shelf: AdapterShelf;
  #cache: number | null = null;
  /** The last round that was given to each of this rank's segments. */
  readonly #tails = new Map<number, Promise<unknown>>();
  /** Activations between two segments of this rank, by key. */
  readonly #local = new Map<string, DeviceTensor>();

  constructor(own: RankSegments, links: RankLinks) {
    this.#own = own;
    this.#links = links;
    this.shelf = new AdapterShelf(own.engine, own.pairSizes);
  }

  /** Replaces the key/value cache, after all rounds that have begun. Errors: PL_OUT_OF_MEMORY, PL_TENSOR_MISMATCH. */
  async open({ sequences, rows }: OpenCache__Output): Promise<void> {
    await this.idle();
    const { engine, engineSegment } = this.#own;
    if (this.#cache !== null) await engine.freeCache(this.#cache);
    this.#cache = null;
    if (rows > 0 && engineSegment.size > 0) this.#cache = await engine.createCache(sequences, rows);
  }

  /**
   * Runs a round through this rank's segments. It is queued before this returns, so rounds run in the order of the calls. Resolves with the
   * drawn tokens on the rank that holds the head (the first, if several do), and with null on the others. Errors: PL_PROTOCOL_MISMATCH,
   * PL_LINK_FAILED, those of the engine.
   */
  async run(request: Infer__Output): Promise<InferResult | null> {
    const { segments, rank } = this.#own;
    const round = unpack(request);
    const own = segments.filter(({ ranks }) => ranks[0] === rank);
    if (own.length === 0) return null;
    if (this.#cache === null) throw new PipeloraError("PL_PROTOCOL_MISMATCH", "a round came to a rank without a cache");
    const passes = new Map<number, Promise<InferResult | null>>();
    const sends: Promise<void>[] = [];
    for (const { index } of own) {
      // After this segment's round before, and after this round's segment before, if it is this rank's.
      const before = Promise.all([this.#tails.get(index), passes.get(index - 1)]);
      const pass = before.then(() => this.#pass(index, round, sends));
      passes.set(index, pass);
      this.#tails.set(
        index,
        pass.catch(() => {}),
      );
    }
    const results = await Promise.all(passes.values());
    await Promise.all(sends);
    return results.find((result) => result !== null) ?? null;
  }

  /** Resolves when no round is running. */
  async idle(): Promise<void> {
    await Promise.all(this.#tails.values());
  }

  /** Runs a round through one segment. Its output may still be being sent when this resolves: `sends` gets that promise. */
  async #pass(index: number, round: Round, sends: Promise<void>[]): Promise<InferResult | null> {
    const { engine, segments, engineSegment } = this.#own;
    const input = index === 0 ? null : await this.#take(index, round);
    const number = engineSegment.get(index)!;
    const tokens = index === 0 ? round.tokens : null;
    // Adapters in training are the engine's own. Adapters on the shelf share the engine's first one, one at a time. Both calls are queued at
    // once, so no other round can put its adapter there in between.
    const [adapter, ready] = this.shelf.empty ? [round.adapter, null] : [0, this.shelf.use(round.adapter)];
    const pass = engine.infer(number, this.#cache!, round.sequences, tokens, input, adapter);
    const [output] = await Promise.all([pass, ready]);
    if (index + 1 < segments.length) {
      await this.#give(index + 1, round, output, sends);
      return null;
    }
    try {
      // All draws are queued at once.
      return { tokens: await Promise.all(round.draws.map((draw) => this.#draw(output, draw))) };
    } finally {
      output.free();
    }
  }

  async #draw(logits: DeviceTensor, request: Draw__Output): Promise<DrawnToken> {
    try {
      const { token, logProbability, likeliest } = await this.#own.engine.sample(logits, request, {
        row: request.sequence,
        seen: int32Of(request.seen),
        biased: int32Of(request.biased),
        biases: float32Of(request.biases),
        draw: request.draw,
        likeliest: request.logProbabilities ? request.likeliest : -1,
      });
      return { token, logProbability, likeliest: [...likeliest] };
    } catch (error) {
      // One sequence has bad logits; the others are good.
      return { failure: toFailure(error) };
    }
  }

  async #give(toSegment: number, { name }: Round, state: DeviceTensor, sends: Promise<void>[]): Promise<void> {
    const key = activationKey(name, toSegment, 0);
    const to = this.#own.segments[toSegment]!.ranks[0]!;
    if (to === this.#own.rank) {
      this.#local.set(key, state);
      return;
    }
    const { sent } = await this.#links.send(to, key, await fromDevice(this.#own, state));
    // Awaited at the end of the round. Until then a failure must not count as unhandled.
    sent.catch(() => {});
    sends.push(sent);
  }

  async #take(segment: number, { name }: Round): Promise<DeviceTensor> {
    const key = activationKey(name, segment, 0);
    const from = this.#own.segments[segment - 1]!.ranks[0]!;
    if (from === this.#own.rank) {
      const state = this.#local.get(key)!;
      this.#local.delete(key);
      return state;
    }
    return toDevice(this.#own, await this.#links.receive(from, key));
  }
}

function unpack(request: Infer__Output): Round {
  const counts = int32Of(request.counts);
  const cuSeqlens = new Int32Array(counts.length + 1);
  for (const [index, count] of counts.entries()) cuSeqlens[index + 1] = cuSeqlens[index]! + count;
  return {
    name: `infer/${request.round}`,
    adapter: request.adapter,
    sequences: {
      cuSeqlens,
      slots: int32Of(request.slots),
      starts: int32Of(request.starts),
      past: int32Of(request.past),
      lengths: int32Of(request.lengths),
    },
    tokens: int32Of(request.tokens),
    draws: request.draws,
  };
}
