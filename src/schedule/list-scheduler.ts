import {
  type Instruction,
  type InstructionKind,
  rankOf,
  type ScheduledSegment,
  type ScheduleRequest,
} from "./instruction.ts";
import type { Policy, Progress } from "./policy.ts";

/** Durations of segments without planned ones. They decide a schedule's order, not its time. */
const FORWARD_TIME = 1;
const BACKWARD_TIME = 2;

interface Message {
  readonly backward: boolean;
  /** The receiving segment. */
  readonly segment: number;
  readonly microBatch: number;
}

/** One direction between two ranks: a queue of at most one message. */
interface Link {
  readonly from: number;
  readonly to: number;
  message: Message | null;
  /** Whether the sender has an operation whose result would not fit. */
  wanted: boolean;
}

interface Running {
  readonly segment: number;
  readonly microBatch: number;
  readonly backward: boolean;
  readonly end: number;
}

/**
 * List scheduling: runs the pipeline in nominal time and records what each rank does. A rank starts the operation that its policy prefers,
 * among those whose input has arrived and whose output has room. A link has room for one message in each direction. Ranks that follow fixed
 * lists over bounded queues reach the same end in any order of events. So the lists run to the end over any link that buffers at least one
 * message, however long operations really take. Returns null if the policy leaves every rank waiting.
 */
export function scheduleLists(request: ScheduleRequest, ranks: number, policy: Policy): Instruction[][] | null {
  return new ListScheduler(request, ranks, policy).run();
}

class ListScheduler {
  readonly #segments: readonly ScheduledSegment[];
  readonly #policy: Policy;
  readonly #lists: Instruction[][];
  /** How many passes each of a segment's ranks has started, by segment. */
  readonly #forwards: number[][];
  readonly #backwards: number[][];
  /** Whether an input, or an output's gradient, is on the rank, by segment and micro-batch. */
  readonly #inputs: Uint8Array[];
  readonly #gradients: Uint8Array[];
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
    this.#segments = segments;
    this.#policy = policy;
    this.#lists = Array.from({ length: ranks }, () => []);
    this.#forwards = segments.map((segment) => segment.ranks.map(() => 0));
    this.#backwards = segments.map((segment) => segment.ranks.map(() => 0));
    this.#inputs = segments.map(() => new Uint8Array(microBatches));
    this.#gradients = segments.map(() => new Uint8Array(microBatches));
    this.#inputs[0]!.fill(1);
    this.#gradients[count - 1]!.fill(1);
    this.#running = new Array<Running | null>(ranks).fill(null);
    this.#incoming = Array.from({ length: ranks }, () => []);
    const segmentsOf: number[][] = Array.from({ length: ranks }, () => []);
    for (const [segment, own] of segments.entries()) for (const rank of own.ranks) segmentsOf[rank]!.push(segment);
    const found = segments.findIndex((_, segment) => needsBackward(segment));
    const lowest = found < 0 ? count : found;
    this.#progress = {
      segments: count,
      microBatches,
      segmentsOf,
      lowest,
      trains: lowest < count,
      next: (rank, segment, backward) => this.#next(segment, segments[segment]!.ranks.indexOf(rank), backward),
      oldest: (segment, backward) =>
        Math.min(...segments[segment]!.ranks.map((_, turn) => this.#next(segment, turn, backward))),
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
    let least = Number.POSITIVE_INFINITY;
    for (const running of this.#running) if (running !== null && running.end < least) least = running.end;
    return least;
  }

  /** Starts what can start now. A start may make room for another rank, so this repeats until nothing changes. */
  #startAll(): void {
    while (this.#awake.size > 0) {
      const ranks = [...this.#awake].sort((a, b) => a - b);
      this.#awake.clear();
      for (const rank of ranks) {
        if (this.#running[rank] === null && !this.#start(rank) && this.#drain(rank)) this.#awake.add(rank);
      }
    }
  }

  /**
   * The rank nearest to the pipeline's end that can do anything starts one operation out of turn, or receives a message to make room for one.
   */
  #startOutOfTurn(): boolean {
    for (let rank = this.#lists.length - 1; rank >= 0; rank--) {
      if (this.#start(rank, this.#policy.whenStuck?.(rank, this.#progress) ?? [])) return true;
    }
    return this.#lists.some((_, rank) => this.#drain(rank));
  }

  #start(rank: number, candidates = this.#policy.candidates(rank, this.#progress)): boolean {
    for (const { segment, backward } of candidates) {
      const microBatch = this.#progress.next(rank, segment, backward);
      if (!this.#isReady(rank, segment, microBatch, backward)) continue;
      const out = this.#outgoing(rank, segment, microBatch, backward);
      if (out !== null && out.message !== null) {
        out.wanted = true;
        this.#awake.add(out.to);
        continue;
      }
      this.#takeInput(rank, segment, microBatch, backward);
      this.#emit(rank, backward ? "backward" : "forward", segment, microBatch);
      const { ranks, forward = FORWARD_TIME, backward: back = BACKWARD_TIME } = this.#segments[segment]!;
      (backward ? this.#backwards : this.#forwards)[segment]![ranks.indexOf(rank)]! += 1;
      this.#running[rank] = { segment, microBatch, backward, end: this.#time + (backward ? back : forward) };
      if (this.#isWatched(segment, backward)) this.#wakeAll();
      return true;
    }
    return false;
  }

  /** Whether other ranks' policies depend on the progress of this pass. */
  #isWatched(segment: number, backward: boolean): boolean {
    const { lowest, segments } = this.#progress;
    if (!backward) return segment === segments - 1;
    return segment === lowest || this.#segments[segment]!.ranks.length > 1;
  }

  /** An idle rank receives a message early if the message blocks its sender. */
  #drain(rank: number): boolean {
    const link = this.#incoming[rank]!.find(({ message, wanted }) => message !== null && wanted);
    if (link === undefined) return false;
    this.#receive(link);
    return true;
  }

  /** The micro-batch whose pass the segment's rank number `turn` starts next. */
  #next(segment: number, turn: number, backward: boolean): number {
    const started = (backward ? this.#backwards : this.#forwards)[segment]!;
    return turn + started[turn]! * started.length;
  }

  #isReady(rank: number, segment: number, microBatch: number, backward: boolean): boolean {
    const { lowest, microBatches } = this.#progress;
    if (microBatch >= microBatches) return false;
    if (backward && (segment < lowest || microBatch >= this.#progress.next(rank, segment, false))) return false;
    return this.#isHere(segment, microBatch, backward) || this.#arrived(rank, segment, microBatch, backward) !== null;
  }

  #isHere(segment: number, microBatch: number, backward: boolean): boolean {
    return (backward ? this.#gradients : this.#inputs)[segment]![microBatch] === 1;
  }

  #takeInput(rank: number, segment: number, microBatch: number, backward: boolean): void {
    if (this.#isHere(segment, microBatch, backward)) return;
    this.#receive(this.#arrived(rank, segment, microBatch, backward)!);
  }

  #receive(link: Link): void {
    const { backward, segment, microBatch } = link.message!;
    link.message = null;
    link.wanted = false;
    this.#awake.add(link.from);
    this.#emit(link.to, backward ? "recv-backward" : "recv-forward", segment, microBatch, link.from);
    (backward ? this.#gradients : this.#inputs)[segment]![microBatch] = 1;
  }

  #finish(rank: number, { segment, microBatch, backward }: Running): void {
    this.#running[rank] = null;
    this.#awake.add(rank);
    this.#left -= 1;
    const target = this.#targetOf(segment, backward);
    if (target === null) return;
    const link = this.#outgoing(rank, segment, microBatch, backward);
    if (link === null) {
      (backward ? this.#gradients : this.#inputs)[target]![microBatch] = 1;
      return;
    }
    this.#emit(rank, backward ? "send-backward" : "send-forward", segment, microBatch, link.to);
    link.message = { backward, segment: target, microBatch };
    this.#awake.add(link.to);
  }

  /** The segment that receives this operation's result. */
  #targetOf(segment: number, backward: boolean): number | null {
    if (backward) return segment > this.#progress.lowest ? segment - 1 : null;
    return segment + 1 < this.#progress.segments ? segment + 1 : null;
  }

  #outgoing(rank: number, segment: number, microBatch: number, backward: boolean): Link | null {
    const target = this.#targetOf(segment, backward);
    return target === null ? null : this.#link(rank, rankOf(this.#segments[target]!, microBatch));
  }

  /** The link whose queue holds the segment's input, or its output's gradient, for that micro-batch. */
  #arrived(rank: number, segment: number, microBatch: number, backward: boolean): Link | null {
    const source = this.#segments[backward ? segment + 1 : segment - 1];
    if (source === undefined) return null;
    const link = this.#link(rankOf(source, microBatch), rank);
    const message = link?.message;
    const found = message?.segment === segment && message.backward === backward && message.microBatch === microBatch;
    return found ? link : null;
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
