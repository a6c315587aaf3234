import { bytesOf, int32Of } from "../common/bytes.ts";
import type { DeviceTensor, Engine } from "../engine/index.ts";
import { activationKey } from "../links/link.ts";
import type { Generate__Output } from "../rpc/generated/pipelora/v1/Generate.ts";
import type { Segment__Output } from "../rpc/generated/pipelora/v1/Segment.ts";
import type { RankLinks } from "./links.ts";
import { Sampler } from "./sampling.ts";
import { fromDevice, fromHost, toDevice } from "./tensors.ts";

export interface GenerationInput {
  readonly name: string;
  readonly request: Generate__Output;
  /** All segments of the model, in order. */
  readonly segments: readonly Segment__Output[];
  readonly rank: number;
  /** This rank's engine numbers of its segments. */
  readonly engineSegment: ReadonlyMap<number, number>;
  readonly cancelled: () => boolean;
  /** Called on the last rank only, in order. */
  readonly onToken: (token: number, last: boolean) => void;
}

/** What a segment takes in a round: new token ids (segment 0), an activation, or the end of generation. */
type RoundInput = { readonly tokens: Int32Array } | { readonly state: DeviceTensor } | "end";

/**
 * One rank's part of generating a reply. Each round runs the new tokens through all segments; the rank that holds the
 * head chooses the next token and hands it to the rank that holds the embedding, straight. The coordinator only listens.
 */
export async function generate(engine: Engine, links: RankLinks, input: GenerationInput): Promise<void> {
  const { request, segments } = input;
  const courier = new Courier(engine, links, input);
  const cache = await engine.createCache(1, request.prompt.length + request.maxNewTokens);
  const sampler = new Sampler(engine, request, request.prompt);
  const stops = new Set(request.stopIds);
  try {
    for (let round = 0, ended = false; !ended; round++) {
      for (const segment of segments) {
        if (segment.rank !== input.rank) continue;
        const taken: RoundInput =
          segment.index === 0 && round === 0
            ? { tokens: Int32Array.from(request.prompt) }
            : await courier.take(segment.index, round);
        if (taken === "end") {
          ended = true;
          if (segment.index + 1 < segments.length) await courier.pass(segment.index + 1, round, "end");
          continue;
        }
        const local = input.engineSegment.get(segment.index)!;
        const tokens = "tokens" in taken ? taken.tokens : null;
        const state = "state" in taken ? taken.state : null;
        const count = tokens?.length ?? state!.shape[0]!;
        const output = await engine.infer(local, cache, Int32Array.of(0, count), tokens, state);
        if (segment.index + 1 < segments.length) {
          await courier.pass(segment.index + 1, round, { state: output });
          continue;
        }
        const token = await sampler.choose(output, round);
        output.free();
        const last = stops.has(token) || round + 1 >= request.maxNewTokens || input.cancelled();
        input.onToken(token, last);
        await courier.pass(0, round + 1, last ? "end" : { tokens: Int32Array.of(token) });
      }
    }
  } finally {
    await engine.freeCache(cache);
  }
}

/** Carries a round's inputs between segments: over a link to another rank, straight on the same one. */
class Courier {
  readonly #engine: Engine;
  readonly #links: RankLinks;
  readonly #input: GenerationInput;
  readonly #local = new Map<string, RoundInput>();

  constructor(engine: Engine, links: RankLinks, input: GenerationInput) {
    this.#engine = engine;
    this.#links = links;
    this.#input = input;
  }

  async pass(toSegment: number, round: number, what: RoundInput): Promise<void> {
    const key = this.#key(toSegment, round);
    const to = this.#input.segments[toSegment]!.rank;
    if (to === this.#input.rank) {
      this.#local.set(key, what);
    } else if (what === "end") {
      await this.#links.sendWhole(to, key, fromHost(new Uint8Array(0), [0], "int32"));
    } else if ("tokens" in what) {
      await this.#links.sendWhole(to, key, fromHost(bytesOf(what.tokens), [what.tokens.length], "int32"));
    } else {
      await this.#links.sendWhole(to, key, fromDevice(this.#engine, what.state));
    }
  }

  async take(segment: number, round: number): Promise<RoundInput> {
    const { segments, rank } = this.#input;
    const key = this.#key(segment, round);
    const from = segments[segment === 0 ? segments.length - 1 : segment - 1]!.rank;
    if (from === rank) {
      const what = this.#local.get(key)!;
      this.#local.delete(key);
      return what;
    }
    if (segment === 0) {
      const tokens = int32Of(await this.#links.receiveBytes(from, key));
      return tokens.length === 0 ? "end" : { tokens };
    }
    const tensor = await this.#links.receive(from, key);
    if (tensor.shape[0] !== 0) return { state: await toDevice(this.#engine, tensor) };
    tensor.release();
    return "end";
  }

  #key(segment: number, round: number): string {
    return activationKey(`${this.#input.name}/${round}`, segment, 0);
  }
}
