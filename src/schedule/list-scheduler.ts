import type { Instruction, InstructionKind, ScheduleRequest } from "./instruction.ts";
import type { Policy, Progress } from "./policy.ts";

/** Nominal durations; a schedule's order, not its time, comes from them. */
const FORWARD_TIME = 1;
const BACKWARD_TIME = 2;

interface Message {
  readonly backward: boolean;
  /** The receiving segment. */
  readonly segment: number;
}

/** One direction between two ranks: a queue of at most one message. */
interface Link {
  readonly from: number;
  readonly to: number;
  message: Message | null;
  /** The sender has work whose result would not fit. */
  wanted: boolean;
}

interface Running {
  readonly segment: number;
  readonly backward: boolean;
  readonly end: number;
}

/**
 * List scheduling. Runs the pipeline in nominal time and writes down what each rank did. A rank starts the operation that its policy
 * prefers, among those whose input has arrived and whose output has room. That run has room for one message a link direction. So the lists
 * run to the end over any link that buffers at least one message, however long operations really take: ranks that follow fixed lists over
 * bounded queues reach the same end in any order of events. Returns null if the policy leaves every rank waiting.
 */
export function scheduleLists(request: ScheduleRequest, ranks: number, policy: Policy): Instruction[][] | null {
  return new ListScheduler(request, ranks, policy).run();
}

class ListScheduler {
  readonly #rankOf: readonly number[];
  readonly #policy: Policy;
  readonly #lists: Instruction[][];
  readonly #forwards: number[];
  readonly #backwards: number[];
  /** Inputs and output gradients that are on the rank, by segment. */
  readonly #inputs: number[];
  readonly #gradients: number[];
  readonly #progress: Progress;
  readonly #running: (Running | null)[];
  readonly #links = new Map<number, Link>();
  readonly #incoming: Link[][];
  /** Ranks for which something has changed since they last found nothing to start. */
  readonly #awake = new Set<number>();
  #time = 0;
  #left: number;

  constructor({ segments, microBatches, needsBackward }: ScheduleRequest, ranks: number, policy: Policy) {
    const count = segments.length;
    this.#rankOf = segments.map((segment) => segment.rank);
    this.#policy = policy;
    this.#lists = Array.from({ length: ranks }, () => []);
    this.#forwards = new Array<number>(count).fill(0);
    this.#backwards = new Array<number>(count).fill(0);
    this.#inputs = new Array<number>(count).fill(0);
    this.#gradients = new Array<number>(count).fill(0);
    this.#inputs[0] = microBatches;
    this.#running = new Array<Running | null>(ranks).fill(null);
    this.#incoming = Array.from({ length: ranks }, () => []);
    const segmentsOf: number[][] = Array.from({ length: ranks }, () => []);
    for (const [segment, rank] of this.#rankOf.entries()) segmentsOf[rank]!.push(segment);
    const found = segments.findIndex((_, segment) => needsBackward(segment));
    const lowest = found < 0 ? count : found;
    this.#progress = {
      segments: count,
      microBatches,
      segmentsOf,
      forwards: this.#forwards,
      backwards: this.#backwards,
      lowest,
      trains: lowest < count,
    };
    this.#left = microBatches * (count + (count - lowest));
    this.#wakeAll();
  }

  run(): Instruction[][] | null {
    while (this.#left > 0) {
      this.#startAll();
      let next = this.#nextEnd();
      while (next === Number.POSITIVE_INFINITY) {
        if (!this.#startOutOfTurn()) return null;
        this.#startAll();
        next = this.#nextEnd();
      }
      this.#time = next;
      for (const [rank, running] of this.#running.entries()) {
        if (running?.end === this.#time) this.#finish(rank, running);
      }
    }
    return this.#lists;
  }

  #nextEnd(): number {
    return this.#running.reduce((least, running) => Math.min(least, running?.end ?? least), Number.POSITIVE_INFINITY);
  }

  /** Starts what can start now; whatever starts may make room for another rank, so until nothing changes. */
  #startAll(): void {
    while (this.#awake.size > 0) {
      const ranks = [...this.#awake].sort((a, b) => a - b);
      this.#awake.clear();
      for (const rank of ranks) {
        if (this.#running[rank] === null && !this.#start(rank) && this.#drain(rank)) this.#awake.add(rank);
      }
    }
  }

  /** The rank nearest to the end that can do anything does one thing that was not its turn, or takes in a message to make room for that. */
  #startOutOfTurn(): boolean {
    for (let rank = this.#lists.length - 1; rank >= 0; rank--) {
      if (this.#start(rank, this.#policy.whenStuck?.(rank, this.#progress) ?? [])) return true;
    }
    return this.#lists.some((_, rank) => this.#drain(rank));
  }

  #start(rank: number, candidates = this.#policy.candidates(rank, this.#progress)): boolean {
    for (const { segment, backward } of candidates) {
      if (!this.#isReady(segment, backward)) continue;
      const out = this.#outgoing(segment, backward);
      if (out !== null && out.message !== null) {
        out.wanted = true;
        this.#awake.add(out.to);
        continue;
      }
      this.#takeInput(segment, backward);
      const counts = backward ? this.#backwards : this.#forwards;
      this.#emit(rank, backward ? "backward" : "forward", segment, counts[segment]!);
      counts[segment]! += 1;
      const end = this.#time + (backward ? BACKWARD_TIME : FORWARD_TIME);
      this.#running[rank] = { segment, backward, end };
      // The only progress that policies watch on other ranks.
      if (segment === (backward ? this.#progress.lowest : this.#progress.segments - 1)) this.#wakeAll();
      return true;
    }
    return false;
  }

  /** An idle rank receives a message early, if that message keeps its sender from working. */
  #drain(rank: number): boolean {
    const link = this.#incoming[rank]!.find(({ message, wanted }) => message !== null && wanted);
    if (link === undefined) return false;
    this.#receive(link);
    return true;
  }

  #isReady(segment: number, backward: boolean): boolean {
    const { lowest, segments, microBatches } = this.#progress;
    if (!backward) {
      const next = this.#forwards[segment]!;
      return next < microBatches && (this.#inputs[segment]! > next || this.#arrived(segment, backward) !== null);
    }
    const next = this.#backwards[segment]!;
    if (segment < lowest || next >= this.#forwards[segment]!) return false;
    return segment === segments - 1 || this.#gradients[segment]! > next || this.#arrived(segment, backward) !== null;
  }

  #takeInput(segment: number, backward: boolean): void {
    const onRank = backward ? this.#gradients : this.#inputs;
    const next = (backward ? this.#backwards : this.#forwards)[segment]!;
    if (backward && segment === this.#progress.segments - 1) return;
    if (onRank[segment]! <= next) this.#receive(this.#arrived(segment, backward)!);
  }

  #receive(link: Link): void {
    const { backward, segment } = link.message!;
    link.message = null;
    link.wanted = false;
    this.#awake.add(link.from);
    const onRank = backward ? this.#gradients : this.#inputs;
    this.#emit(link.to, backward ? "recv-backward" : "recv-forward", segment, onRank[segment]!, link.from);
    onRank[segment]! += 1;
  }

  #finish(rank: number, { segment, backward }: Running): void {
    this.#running[rank] = null;
    this.#awake.add(rank);
    this.#left -= 1;
    const target = this.#targetOf(segment, backward);
    if (target === null) return;
    const link = this.#outgoing(segment, backward);
    if (link === null) {
      (backward ? this.#gradients : this.#inputs)[target]! += 1;
      return;
    }
    const microBatch = (backward ? this.#backwards : this.#forwards)[segment]! - 1;
    this.#emit(rank, backward ? "send-backward" : "send-forward", segment, microBatch, link.to);
    link.message = { backward, segment: target };
    this.#awake.add(link.to);
  }

  /** The segment that takes what this operation makes. */
  #targetOf(segment: number, backward: boolean): number | null {
    if (backward) return segment > this.#progress.lowest ? segment - 1 : null;
    return segment + 1 < this.#progress.segments ? segment + 1 : null;
  }

  #outgoing(segment: number, backward: boolean): Link | null {
    const target = this.#targetOf(segment, backward);
    return target === null ? null : this.#link(this.#rankOf[segment]!, this.#rankOf[target]!);
  }

  /** The link whose queue holds this segment's next input or output gradient. */
  #arrived(segment: number, backward: boolean): Link | null {
    const source = backward ? segment + 1 : segment - 1;
    if (source < 0 || source >= this.#progress.segments) return null;
    const link = this.#link(this.#rankOf[source]!, this.#rankOf[segment]!);
    const message = link?.message;
    return message?.segment === segment && message.backward === backward ? link : null;
  }

  #link(from: number, to: number): Link | null {
    if (from === to) return null;
    const key = from * this.#lists.length + to;
    let link = this.#links.get(key);
    if (link === undefined) {
      link = { from, to, message: null, wanted: false };
      this.#links.set(key, link);
      this.#incoming[to]!.push(link);
    }
    return link;
  }

  #wakeAll(): void {
    for (let rank = 0; rank < this.#lists.length; rank++) this.#awake.add(rank);
  }

  #emit(rank: number, kind: InstructionKind, segment: number, microBatch: number, peer?: number): void {
    this.#lists[rank]!.push(peer === undefined ? { kind, segment, microBatch } : { kind, segment, microBatch, peer });
  }
}
