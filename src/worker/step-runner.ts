import { deferred } from "../common/deferred.ts";
import { PipeloraError } from "../common/errors.ts";
import type { DeviceTensor, Engine, MicroBatch } from "../engine/index.ts";
import { activationKey, gradientKey } from "../links/link.ts";
import type { Instruction } from "../schedule/index.ts";
import type { RankLinks } from "./links.ts";
import { fromDevice, toDevice } from "./tensors.ts";
import type { SpanKind, StepTrace } from "./trace.ts";

export interface StepTotals {
  lossSum: number;
  labelTokens: number;
  correctTokens: number;
  /** Milliseconds in which nothing could be queued because an input was not there yet: a peer's or, on this rank, the last segment's. */
  waitMs: number;
  /** Milliseconds of adding up gradients with other replicas. */
  reduceMs: number;
  sentBytes: number;
  /** Milliseconds that tensors took to leave the device for a peer, and peers' to enter it, summed; compute goes on meanwhile. */
  linkMs: number;
}

/** What one pass over an instruction list needs. */
export interface StepInput {
  /** Names this pass in tensor keys: "step 12", "eval 3". */
  readonly name: string;
  readonly instructions: readonly Instruction[];
  readonly batches: readonly MicroBatch[];
  /** Hears when everything began and ended; null: nobody does. */
  readonly trace: StepTrace | null;
}

/**
 * Instructions whose tensors are asked for ahead of their turn, so that what has arrived is in device memory by then. A
 * schedule keeps peers from running further ahead than this.
 */
const LOOKAHEAD = 6;

/**
 * Runs this rank's instruction list. Work is queued on the engine in list order without waiting for it; only a tensor
 * from a peer is waited for, and sends go out as soon as their tensor is computed, so both overlap compute.
 */
export async function runInstructions(
  { engine, engineSegment }: { engine: Engine; engineSegment: ReadonlyMap<number, number> },
  links: RankLinks,
  input: StepInput,
): Promise<StepTotals> {
  const pass = new Pass(engine, engineSegment, links, input);
  try {
    for (const [index, instruction] of input.instructions.entries()) {
      for (const ahead of input.instructions.slice(index, index + LOOKAHEAD)) pass.expect(ahead);
      await pass.orFailure(pass.issue(instruction));
    }
    await pass.orFailure(pass.finish());
  } catch (error) {
    await pass.abandon();
    throw withLossScale(error, input.batches[0]?.lossScale ?? 1);
  }
  return pass.totals;
}

/** The engine tells which step and row lost its loss; under loss scaling the scale belongs to that. */
function withLossScale(thrown: unknown, scale: number): unknown {
  const { code, message } = thrown as { code?: string; message: string };
  if (code !== "PL_LOSS_NOT_FINITE" || scale === 1) return thrown;
  return new PipeloraError(code, `${message}; the loss scale is ${scale}`, { cause: thrown });
}

/** A tensor that an instruction made or will make, waiting for the instruction that takes it. */
type Slot = Promise<DeviceTensor | null>;

class Pass {
  readonly #engine: Engine;
  /** The engine's own number of each of this rank's segments. */
  readonly #engineSegment: ReadonlyMap<number, number>;
  readonly #links: RankLinks;
  readonly #input: StepInput;
  readonly totals: StepTotals = {
    lossSum: 0,
    labelTokens: 0,
    correctTokens: 0,
    waitMs: 0,
    reduceMs: 0,
    sentBytes: 0,
    linkMs: 0,
  };
  /** Inputs of forward and backward by "segment/microBatch". */
  readonly #activations = new Map<string, Slot>();
  readonly #gradients = new Map<string, Slot>();
  readonly #running: Promise<unknown>[] = [];
  /** Rejects as soon as anything that was queued fails. */
  readonly #failure = deferred<never>();
  readonly #expected = new Set<Instruction>();
  /** Per micro-batch, so that sums are made in one order whatever the schedule. */
  readonly #losses: { lossSum: number; labelTokens: number; correctTokens: number }[] = [];
  /** When the engine was last seen to end something. */
  #computed = 0;

  constructor(engine: Engine, engineSegment: ReadonlyMap<number, number>, links: RankLinks, input: StepInput) {
    this.#engine = engine;
    this.#engineSegment = engineSegment;
    this.#links = links;
    this.#input = input;
    this.#failure.promise.catch(() => {});
  }

  /** What is awaited, unless something queued fails first: a peer would be waited for in vain. */
  orFailure<T>(awaited: Promise<T>): Promise<T> {
    return Promise.race([awaited, this.#failure.promise]);
  }

  /** Asks for a tensor that a receive names, once. */
  expect(instruction: Instruction): void {
    const { kind, segment, microBatch, peer } = instruction;
    if (this.#expected.has(instruction) || (kind !== "recv-forward" && kind !== "recv-backward")) return;
    this.#expected.add(instruction);
    const [slots, key] = kind === "recv-forward" ? [this.#activations, activationKey] : [this.#gradients, gradientKey];
    const arrived = this.#links.receive(peer!, key(this.#input.name, segment, microBatch));
    const written = arrived.then((tensor) => this.#timed(toDevice(this.#engine, tensor), "receive", instruction));
    written.catch(() => {});
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
      // A segment's output is the next segment's input, and its input's gradient the output gradient of the one before.
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
    await Promise.all(this.#running);
    for (const loss of this.#losses) {
      if (loss === undefined) continue;
      this.totals.lossSum += loss.lossSum;
      this.totals.labelTokens += loss.labelTokens;
      this.totals.correctTokens += loss.correctTokens;
    }
  }

  /** After a failure: waits for no peer any more, but for what is queued, and frees what nobody will take. */
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

  /** The engine works in order: what was queued behind something began when that ended. */
  #traceCompute(queued: Promise<unknown>, kind: SpanKind, instruction: Instruction): void {
    const { trace } = this.#input;
    if (trace === null) return;
    const issued = performance.now();
    const ended = () => {
      trace.add(kind, Math.max(issued, this.#computed), instruction);
      this.#computed = performance.now();
    };
    queued.then(ended, () => {});
  }

  /** Notes what was queued. Its failure is seen by orFailure, so it never counts as unhandled. */
  #run(queued: Promise<unknown>): void {
    this.#running.push(queued);
    queued.catch((error: unknown) => this.#failure.reject(error));
  }

  async #arrival(slots: Map<string, Slot>, where: string, instruction: Instruction): Promise<DeviceTensor | null> {
    const slot = take(slots, where);
    const started = performance.now();
    const tensor = await slot;
    this.totals.waitMs += performance.now() - started;
    if (tensor !== null) this.#input.trace?.add("wait", started, instruction);
    return tensor;
  }

  #forward(instruction: Instruction, input: DeviceTensor | null): void {
    const { segment, microBatch } = instruction;
    const batch = this.#input.batches[microBatch]!;
    const result = this.#engine.forward(this.#engineSegment.get(segment)!, batch, input).then(({ output, ...loss }) => {
      // Only the head has a loss; other segments report zeros.
      if (output === null) this.#losses[microBatch] = loss;
      return output;
    });
    this.#run(result);
    this.#traceCompute(result, "forward", instruction);
    this.#activations.set(`${segment + 1}/${microBatch}`, result);
  }

  #backward(instruction: Instruction, gradient: DeviceTensor | null): void {
    const { segment, microBatch } = instruction;
    const result = this.#engine.backward(this.#engineSegment.get(segment)!, microBatch, gradient);
    this.#run(result);
    this.#traceCompute(result, "backward", instruction);
    this.#gradients.set(`${segment - 1}/${microBatch}`, result);
  }

  /**
   * Waits until the tensor is computed, so that its copy is queued before any later work: behind that, the peer would
   * wait for it; and until its link has room, so that a slow peer holds this rank back. Then it goes its way while the
   * list goes on.
   */
  async #send(slots: Map<string, Slot>, where: string, instruction: Instruction, key: string): Promise<void> {
    const tensor = fromDevice(this.#engine, (await take(slots, where))!);
    this.totals.sentBytes += tensor.byteLength;
    const { sent } = await this.#links.send(instruction.peer!, key, tensor);
    this.#run(this.#timed(sent, "send", instruction, tensor.byteLength));
  }
}

/** Takes the tensor that lies at `where`; a first segment and a head's gradient have none. */
function take(slots: Map<string, Slot>, where: string): Slot {
  const slot = slots.get(where);
  slots.delete(where);
  return slot ?? Promise.resolve(null);
}
