import type { Dtype } from "../common/dtype.ts";
import type { DeviceTensor, Engine, MicroBatch } from "../engine/index.ts";
import { activationKey, gradientKey, type TensorMessage } from "../links/link.ts";
import type { Instruction } from "../schedule/index.ts";
import type { RankLinks } from "./links.ts";

export interface StepTotals {
  lossSum: number;
  labelTokens: number;
  correctTokens: number;
  /** Milliseconds spent waiting for peers' tensors. */
  waitMs: number;
  sentBytes: number;
}

/** What one pass over an instruction list needs. */
export interface StepInput {
  /** Names this pass in tensor keys: "step 12", "eval 3". */
  readonly name: string;
  readonly instructions: readonly Instruction[];
  readonly batches: readonly MicroBatch[];
  readonly lossScale: number;
}

/**
 * Runs this rank's instruction list. Work is queued on the engine in list order without waiting for it; only a tensor
 * from a peer is waited for, and sends go out as soon as their tensor is computed, so both overlap compute.
 */
export async function runInstructions(
  { engine, engineSegment }: { engine: Engine; engineSegment: ReadonlyMap<number, number> },
  links: RankLinks,
  input: StepInput,
): Promise<StepTotals> {
  const totals: StepTotals = { lossSum: 0, labelTokens: 0, correctTokens: 0, waitMs: 0, sentBytes: 0 };
  const pass = new Pass(engine, engineSegment, links, input, totals);
  try {
    for (const instruction of input.instructions) await pass.issue(instruction);
    await pass.finish();
  } catch (error) {
    await pass.abandon();
    throw error;
  }
  return totals;
}

/** A tensor that an instruction made or will make, waiting for the instruction that takes it. */
type Slot = Promise<DeviceTensor | null>;

class Pass {
  readonly #engine: Engine;
  /** The engine's own number of each of this rank's segments. */
  readonly #engineSegment: ReadonlyMap<number, number>;
  readonly #links: RankLinks;
  readonly #input: StepInput;
  readonly #totals: StepTotals;
  /** Inputs of forward and backward by "segment/microBatch". */
  readonly #activations = new Map<string, Slot>();
  readonly #gradients = new Map<string, Slot>();
  readonly #running: Promise<unknown>[] = [];
  /** Per micro-batch, so that sums are made in one order whatever the schedule. */
  readonly #losses: { lossSum: number; labelTokens: number; correctTokens: number }[] = [];

  constructor(
    engine: Engine,
    engineSegment: ReadonlyMap<number, number>,
    links: RankLinks,
    input: StepInput,
    totals: StepTotals,
  ) {
    this.#engine = engine;
    this.#engineSegment = engineSegment;
    this.#links = links;
    this.#input = input;
    this.#totals = totals;
  }

  async issue({ kind, segment, microBatch, peer }: Instruction): Promise<void> {
    const { name } = this.#input;
    const here = `${segment}/${microBatch}`;
    switch (kind) {
      case "recv-forward":
        return this.#receive(this.#activations, here, peer!, activationKey(name, segment, microBatch));
      case "recv-backward":
        return this.#receive(this.#gradients, here, peer!, gradientKey(name, segment, microBatch));
      case "forward":
        return this.#forward(segment, microBatch, await take(this.#activations, here));
      case "backward":
        return this.#backward(segment, microBatch, await take(this.#gradients, here));
      // A segment's output is the next segment's input, and its input's gradient the output gradient of the one before.
      case "send-forward":
        return this.#send(
          this.#activations,
          segment + 1,
          microBatch,
          peer!,
          activationKey(name, segment + 1, microBatch),
        );
      case "send-backward":
        return this.#send(this.#gradients, segment - 1, microBatch, peer!, gradientKey(name, segment - 1, microBatch));
    }
  }

  async finish(): Promise<void> {
    await Promise.all(this.#running);
    for (const loss of this.#losses) {
      if (loss === undefined) continue;
      this.#totals.lossSum += loss.lossSum;
      this.#totals.labelTokens += loss.labelTokens;
      this.#totals.correctTokens += loss.correctTokens;
    }
  }

  /** After a failure: waits for what is queued and frees what nobody will take. */
  async abandon(): Promise<void> {
    await Promise.allSettled(this.#running);
    for (const slots of [this.#activations, this.#gradients]) {
      for (const slot of slots.values()) (await slot.catch(() => null))?.free();
    }
    this.#links.reset();
    await this.#engine.discard();
  }

  async #receive(slots: Map<string, Slot>, where: string, peer: number, key: string): Promise<void> {
    const started = performance.now();
    const tensor = await this.#links.receive(peer, key);
    this.#totals.waitMs += performance.now() - started;
    slots.set(where, this.#engine.write(tensor.bytes, tensor.shape, tensor.dtype));
  }

  #forward(segment: number, microBatch: number, input: DeviceTensor | null): void {
    const batch = this.#input.batches[microBatch]!;
    const result = this.#engine.forward(this.#engineSegment.get(segment)!, batch, input).then(({ output, ...loss }) => {
      // Only the head has a loss; other segments report zeros.
      if (output === null) this.#losses[microBatch] = loss;
      return output;
    });
    this.#running.push(result);
    this.#activations.set(`${segment + 1}/${microBatch}`, result);
  }

  #backward(segment: number, microBatch: number, gradient: DeviceTensor | null): void {
    const result = this.#engine.backward(
      this.#engineSegment.get(segment)!,
      microBatch,
      gradient,
      this.#input.lossScale,
    );
    this.#running.push(result);
    this.#gradients.set(`${segment - 1}/${microBatch}`, result);
  }

  #send(slots: Map<string, Slot>, segment: number, microBatch: number, peer: number, key: string): void {
    const tensor = take(slots, `${segment}/${microBatch}`);
    const sent = tensor.then(async (device) => {
      const bytes = await this.#engine.read(device!);
      const message: TensorMessage = { shape: device!.shape, dtype: device!.dtype as Dtype, bytes };
      device!.free();
      this.#totals.sentBytes += bytes.length;
      await this.#links.send(peer, key, message);
    });
    this.#running.push(sent);
    // Whoever awaits `finish` sees the failure; until then it must not count as unhandled.
    sent.catch(() => {});
  }
}

/** Takes the tensor that lies at `where`; a first segment and a head's gradient have none. */
function take(slots: Map<string, Slot>, where: string): Slot {
  const slot = slots.get(where);
  slots.delete(where);
  return slot ?? Promise.resolve(null);
}
