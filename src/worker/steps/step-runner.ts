import { bytesOf } from "../../common/bytes.ts";
import { deferred } from "../../common/deferred.ts";
import { PipeloraError } from "../../common/errors.ts";
import type { DeviceTensor, Engine, ForwardResult, MicroBatch } from "../../engine/index.ts";
import { activationKey, gradientKey } from "../../links/link.ts";
import type { Failure__Output } from "../../rpc/generated/pipelora/v1/Failure.ts";
import type { Losses__Output } from "../../rpc/generated/pipelora/v1/Losses.ts";
import { toFailure } from "../../rpc/wire-error.ts";
import type { Instruction } from "../../schedule/index.ts";
import type { RankLinks } from "../links.ts";
import { type Boundary, fromDevice, toDevice } from "../tensors.ts";
import type { SpanKind, StepTrace } from "./trace.ts";

export interface StepTotals {
  /** By part: the losses of the micro-batches whose head this rank computes. */
  losses: Losses__Output[];
  /** Milliseconds in which nothing could be queued, because an input from a peer or from this rank's own segment was missing. */
  waitMs: number;
  /** Milliseconds spent on adding up gradients with other replicas. */
  reduceMs: number;
  sentBytes: number;
  /** Milliseconds of copying tensors from the device for peers and from peers to the device, added up. Compute goes on meanwhile. */
  linkMs: number;
}

/** One adapter's part of a pass. */
export interface StepPart {
  readonly batches: readonly MicroBatch[];
  /**
   * Queues the update that ends the adapter's step before, which its first pass needs. It is called when this rank waits for a peer, or else
   * just before that pass, while other adapters' micro-batches run. Null: there is none.
   */
  readonly before: (() => Promise<unknown>) | null;
  /** Queues what follows the adapter's last pass on this rank. */
  readonly after: (() => Promise<unknown>) | null;
}

/** The input of one pass over an instruction list. */
export interface StepInput {
  /** This pass's name in tensor keys: "step 12", "eval 3". */
  readonly name: string;
  /** Micro-batches are numbered through over all parts, in order. */
  readonly instructions: readonly Instruction[];
  readonly parts: readonly StepPart[];
  /** Records when everything began and ended; null: nothing is recorded. */
  readonly trace: StepTrace | null;
}

/**
 * Tensors for this many instructions ahead are requested early, so that they are in device memory when their turn comes. A schedule lets peers
 * run no further ahead than this.
 */
const LOOKAHEAD = 6;

/**
 * Runs this rank's instruction list. Work is queued on the engine in list order without waiting for it. Only tensors from peers are waited for,
 * and a tensor is sent as soon as it is computed, so sends and receives overlap compute.
 */
export async function runInstructions(
  rank: Boundary & { readonly engineSegment: ReadonlyMap<number, number> },
  links: RankLinks,
  input: StepInput,
): Promise<StepTotals> {
  const pass = new Pass(rank, rank.engineSegment, links, input);
  try {
    for (const [index, instruction] of input.instructions.entries()) {
      for (const ahead of input.instructions.slice(index, index + LOOKAHEAD)) pass.expect(ahead);
      await pass.orFailure(pass.issue(instruction));
    }
    await pass.orFailure(pass.finish());
  } catch (error) {
    await pass.abandon();
    throw error;
  }
  return pass.totals;
}

/** The failure of a micro-batch whose loss is not finite, named as the adapter's own. With loss scaling it includes the scale. */
function brokenLoss({ step, rowIds, lossScale }: MicroBatch, number: number, notFinite: string): Failure__Output {
  const scale = lossScale === 1 ? "" : `; the loss scale is ${lossScale}`;
  const where = `step ${step}, micro-batch ${number} (${rowIds.length} rows)`;
  return toFailure(new PipeloraError("PL_LOSS_NOT_FINITE", `${where}: the loss is ${notFinite}${scale}`));
}

/** A tensor that an instruction makes, kept for the instruction that takes it. */
type Slot = Promise<DeviceTensor | null>;

class Pass {
  readonly #engine: Engine;
  readonly #boundary: Boundary;
  /** This rank's segments: index in the pipeline -> the engine's number. */
  readonly #engineSegment: ReadonlyMap<number, number>;
  readonly #links: RankLinks;
  readonly #input: StepInput;
  readonly totals: StepTotals = {
    losses: [],
    waitMs: 0,
    reduceMs: 0,
    sentBytes: 0,
    linkMs: 0,
  };
  /** Inputs of forward passes, and of backward passes, by "segment/microBatch". */
  readonly #activations = new Map<string, Slot>();
  readonly #gradients = new Map<string, Slot>();
  readonly #running: Promise<unknown>[] = [];
  /** Rejects as soon as anything that was queued fails. */
  readonly #failure = deferred<never>();
  readonly #expected = new Set<Instruction>();
  /** Slots that a peer fills, and those that are filled. */
  readonly #fromPeer = new Set<Slot>();
  readonly #arrived = new Set<Slot>();
  /** The micro-batches of all parts, by their number in instructions. */
  readonly #batches: readonly MicroBatch[];
  /** The part of each micro-batch, by the same number. */
  readonly #partOf: readonly number[];
  /** How many parts have begun. */
  #begun = 0;
  /** By part: how many passes of this list have not been queued. */
  readonly #left: number[];
  /** Parts whose last pass has been queued. */
  readonly #followed = new Set<number>();
  /** By micro-batch. */
  readonly #losses: Omit<ForwardResult, "output">[] = [];
  /** When the engine last finished something. */
  #computed = 0;

  constructor(boundary: Boundary, engineSegment: ReadonlyMap<number, number>, links: RankLinks, input: StepInput) {
    this.#engine = boundary.engine;
    this.#boundary = boundary;
    this.#engineSegment = engineSegment;
    this.#links = links;
    this.#input = input;
    this.#batches = input.parts.flatMap(({ batches }) => batches).map((batch, index) => ({ ...batch, index }));
    this.#partOf = input.parts.flatMap(({ batches }, part) => batches.map(() => part));
    this.#left = input.parts.map(() => 0);
    for (const { kind, microBatch } of input.instructions) {
      if (kind === "forward" || kind === "backward") this.#left[this.#partOf[microBatch]!]! += 1;
    }
    this.#failure.promise.catch(() => {});
  }

  /** Queues what the parts up to this one need before their first pass. */
  #beginUpTo(part: number): void {
    for (; this.#begun <= part; this.#begun++) {
      const { before } = this.#input.parts[this.#begun]!;
      if (before === null) continue;
      const queued = before();
      this.#run(queued);
      this.#traceCompute(queued, "update", null);
    }
  }

  /** Notes that a pass of this micro-batch's part was queued. */
  #passed(microBatch: number): void {
    const part = this.#partOf[microBatch]!;
    this.#left[part]! -= 1;
    if (this.#left[part]! > 0) return;
    this.#followed.add(part);
    const { after } = this.#input.parts[part]!;
    if (after === null) return;
    const queued = after();
    this.#run(queued);
    this.#traceCompute(queued, "norm", null);
  }

  /** Resolves as `awaited`, but rejects if something queued fails first: a peer's tensor might then never come. */
  orFailure<T>(awaited: Promise<T>): Promise<T> {
    return Promise.race([awaited, this.#failure.promise]);
  }

  /** Requests the tensor of a receive instruction, once. */
  expect(instruction: Instruction): void {
    const { kind, segment, microBatch, peer } = instruction;
    if (this.#expected.has(instruction) || (kind !== "recv-forward" && kind !== "recv-backward")) return;
    this.#expected.add(instruction);
    const [slots, key] = kind === "recv-forward" ? [this.#activations, activationKey] : [this.#gradients, gradientKey];
    const arrived = this.#links.receive(peer!, key(this.#input.name, segment, microBatch));
    const written = arrived.then((tensor) => this.#timed(toDevice(this.#boundary, tensor), "receive", instruction));
    written.then(
      () => this.#arrived.add(written),
      () => {},
    );
    this.#fromPeer.add(written);
    slots.set(`${segment}/${microBatch}`, written);
  }

  async issue(instruction: Instruction): Promise<void> {
    const { kind, segment, microBatch } = instruction;
    const { name } = this.#input;
    const here = `${segment}/${microBatch}`;
    switch (kind) {
      case "recv-forward":
      case "recv-backward":
        return;
      case "forward":
        return this.#forward(instruction, await this.#arrival(this.#activations, here, instruction));
      case "backward":
        return this.#backward(instruction, await this.#arrival(this.#gradients, here, instruction));
      // A segment's output is the next segment's input. The gradient of its input is the gradient of the output of the segment before.
      case "send-forward":
        return this.#send(
          this.#activations,
          `${segment + 1}/${microBatch}`,
          instruction,
          activationKey(name, segment + 1, microBatch),
        );
      case "send-backward":
        return this.#send(
          this.#gradients,
          `${segment - 1}/${microBatch}`,
          instruction,
          gradientKey(name, segment - 1, microBatch),
        );
    }
  }

  async finish(): Promise<void> {
    this.#beginUpTo(this.#left.length - 1);
    // Parts without a pass on this rank.
    for (const [part, { after }] of this.#input.parts.entries()) {
      if (after !== null && !this.#followed.has(part)) this.#run(after());
    }
    await Promise.all(this.#running);
    let first = 0;
    this.totals.losses = this.#input.parts.map(({ batches }) => {
      const sums = new Float64Array(batches.length);
      const all = { labelTokens: 0, correctTokens: 0, failure: null as Failure__Output | null, failedMicroBatch: 0 };
      for (const [own, batch] of batches.entries()) {
        const loss = this.#losses[first + own];
        if (loss === undefined) continue;
        sums[own] = loss.lossSum;
        all.labelTokens += loss.labelTokens;
        all.correctTokens += loss.correctTokens;
        if (loss.notFinite === null || all.failure !== null) continue;
        all.failure = brokenLoss(batch, own, loss.notFinite);
        all.failedMicroBatch = own;
      }
      first += batches.length;
      return { ...all, sums: bytesOf(sums) };
    });
  }

  /** After a failure: stops waiting for peers, waits for queued work, and frees tensors that no instruction will take. */
  async abandon(): Promise<void> {
    this.#links.reset();
    await Promise.allSettled(this.#running);
    for (const slots of [this.#activations, this.#gradients]) {
      for (const slot of slots.values()) (await slot.catch(() => null))?.free();
    }
    await this.#engine.discard();
  }

  async #timed<T>(copy: Promise<T>, kind: SpanKind, instruction: Instruction, bytes?: number): Promise<T> {
    const started = performance.now();
    const done = await copy;
    this.totals.linkMs += performance.now() - started;
    this.#input.trace?.add(kind, started, instruction, bytes);
    return done;
  }

  /** Records queued work. The engine works in order, so it began when the work before it ended. */
  #traceCompute(queued: Promise<unknown>, kind: SpanKind, instruction: Instruction | null): void {
    const { trace } = this.#input;
    if (trace === null) return;
    const issued = performance.now();
    const ended = () => {
      trace.add(kind, Math.max(issued, this.#computed), instruction);
      this.#computed = performance.now();
    };
    queued.then(ended, () => {});
  }

  /** Notes queued work. orFailure reports its failure, so the rejection never counts as unhandled. */
  #run(queued: Promise<unknown>): void {
    this.#running.push(queued);
    queued.catch((error: unknown) => this.#failure.reject(error));
  }

  async #arrival(slots: Map<string, Slot>, where: string, instruction: Instruction): Promise<DeviceTensor | null> {
    const slot = take(slots, where);
    if (this.#fromPeer.has(slot) && !this.#arrived.has(slot)) this.#beginUpTo(this.#left.length - 1);
    const started = performance.now();
    const tensor = await slot;
    this.totals.waitMs += performance.now() - started;
    if (tensor !== null) this.#input.trace?.add("wait", started, instruction);
    return tensor;
  }

  #forward(instruction: Instruction, input: DeviceTensor | null): void {
    const { segment, microBatch } = instruction;
    const batch = this.#batches[microBatch]!;
    this.#beginUpTo(this.#partOf[microBatch]!);
    const result = this.#engine.forward(this.#engineSegment.get(segment)!, batch, input).then(({ output, ...loss }) => {
      // Only the head has a loss; other segments report zeros.
      if (output === null) this.#losses[microBatch] = loss;
      return output;
    });
    this.#run(result);
    this.#traceCompute(result, "forward", instruction);
    this.#activations.set(`${segment + 1}/${microBatch}`, result);
    this.#passed(microBatch);
  }

  #backward(instruction: Instruction, gradient: DeviceTensor | null): void {
    const { segment, microBatch } = instruction;
    const result = this.#engine.backward(this.#engineSegment.get(segment)!, microBatch, gradient);
    this.#run(result);
    this.#traceCompute(result, "backward", instruction);
    this.#gradients.set(`${segment - 1}/${microBatch}`, result);
    this.#passed(microBatch);
  }

  /**
   * Waits until the tensor is computed, so that its copy is queued before later work: otherwise the peer would wait for that work too. Waits
   * also until the link has room, so that a slow peer slows this rank down. The list goes on while the tensor is sent.
   */
  async #send(slots: Map<string, Slot>, where: string, instruction: Instruction, key: string): Promise<void> {
    const tensor = await fromDevice(this.#boundary, (await take(slots, where))!);
    this.totals.sentBytes += tensor.byteLength;
    const { sent } = await this.#links.send(instruction.peer!, key, tensor);
    this.#run(this.#timed(sent, "send", instruction, tensor.byteLength));
  }
}

/** Takes the tensor at `where`. A first segment's input and the gradient of the head's output are null. */
function take(slots: Map<string, Slot>, where: string): Slot {
  const slot = slots.get(where);
  slots.delete(where);
  return slot ?? Promise.resolve(null);
}
