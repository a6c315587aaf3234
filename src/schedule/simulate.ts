import { PipeloraError } from "../common/errors.ts";
import type { Instruction } from "./instruction.ts";

/** Seconds that operations take on the rank that runs them. */
export interface OperationTimes {
  readonly forward: (segment: number, microBatch: number) => number;
  readonly backward: (segment: number, microBatch: number) => number;
}

/** How messages travel. Sends and receives overlap compute; the messages of one direction go one after another. */
export interface LinkModel {
  /** Seconds before the first byte arrives. */
  readonly latency: (from: number, to: number) => number;
  readonly bytesPerSecond: (from: number, to: number) => number;
  /** Bytes of one activation or activation gradient. */
  readonly messageBytes: (microBatch: number) => number;
  /** Messages a direction that may be sent and not yet received; a sender waits for room. Infinity: never. */
  readonly buffer: number;
}

export const IDEAL_LINKS: LinkModel = {
  latency: () => 0,
  bytesPerSecond: () => Number.POSITIVE_INFINITY,
  messageBytes: () => 0,
  buffer: Number.POSITIVE_INFINITY,
};

export interface SimulatedRank {
  /** Seconds of compute. */
  readonly busy: number;
  /** Share of the step in which the rank does not compute. */
  readonly bubble: number;
  readonly sentBytes: number;
  /** Most micro-batches whose activations it held at once, by segment; only segments that run backward. */
  readonly peakHeld: ReadonlyMap<number, number>;
}

export interface SimulatedStep {
  readonly stepTime: number;
  /** 1 − compute of all ranks that hold segments / (those ranks × step time). */
  readonly bubble: number;
  readonly bytes: number;
  readonly ranks: readonly SimulatedRank[];
}

/** Where the lists stop, were they run: each rank that waits, and for what. */
export interface Deadlock {
  readonly waiting: readonly { readonly rank: number; readonly instruction: Instruction; readonly reason: string }[];
}

export type SimulationResult =
  | { readonly deadlock: null; readonly step: SimulatedStep }
  | { readonly deadlock: Deadlock; readonly step: null };

/**
 * Runs instruction lists in simulated time. Each direction between two ranks is one first-in first-out queue: a receive
 * that finds another message at its head waits for ever, as it would on a real link of that kind, and counts as a deadlock.
 */
export function simulate(
  lists: readonly (readonly Instruction[])[],
  times: OperationTimes,
  links: LinkModel = IDEAL_LINKS,
): SimulationResult {
  return new Simulation(lists, times, links).run();
}

/** As simulate, for lists that must run: throws PL_INTERNAL naming who waits for what. */
export function simulateStep(
  lists: readonly (readonly Instruction[])[],
  times: OperationTimes,
  links: LinkModel = IDEAL_LINKS,
): SimulatedStep {
  const { deadlock, step } = simulate(lists, times, links);
  if (deadlock === null) return step;
  const waiting = deadlock.waiting.map(
    ({ rank, instruction: { kind, segment, microBatch }, reason }) =>
      `rank ${rank} at ${kind} of segment ${segment}, micro-batch ${microBatch} (${reason})`,
  );
  throw new PipeloraError("PL_INTERNAL", `the schedule deadlocks: ${waiting.join("; ")}`);
}

interface Sent {
  readonly tag: string;
  readonly arrival: number;
}

interface LinkState {
  readonly sent: Sent[];
  /** When each message was received. */
  readonly received: number[];
  /** When the last message has left. */
  free: number;
}

interface RankState {
  next: number;
  clock: number;
  busy: number;
  sentBytes: number;
  readonly held: Map<number, number>;
  readonly peakHeld: Map<number, number>;
}

class Simulation {
  readonly #lists: readonly (readonly Instruction[])[];
  readonly #times: OperationTimes;
  readonly #model: LinkModel;
  readonly #ranks: RankState[];
  readonly #links = new Map<number, LinkState>();
  readonly #learning: ReadonlySet<number>;

  constructor(lists: readonly (readonly Instruction[])[], times: OperationTimes, model: LinkModel) {
    this.#lists = lists;
    this.#times = times;
    this.#model = model;
    this.#ranks = lists.map(() => ({ next: 0, clock: 0, busy: 0, sentBytes: 0, held: new Map(), peakHeld: new Map() }));
    this.#learning = new Set(
      lists.flatMap((list) => list.filter(({ kind }) => kind === "backward").map(({ segment }) => segment)),
    );
  }

  run(): SimulationResult {
    const ready = this.#ranks.map((_, rank) => rank);
    for (let rank = ready.pop(); rank !== undefined; rank = ready.pop()) {
      const state = this.#ranks[rank]!;
      const list = this.#lists[rank]!;
      while (state.next < list.length) {
        const instruction = list[state.next]!;
        if (this.#blockedBy(rank, instruction) !== null) break;
        this.#execute(rank, state, instruction);
        state.next += 1;
        if (instruction.peer !== undefined) ready.push(instruction.peer);
      }
    }
    const waiting = this.#ranks.flatMap((state, rank) => {
      const instruction = this.#lists[rank]![state.next];
      return instruction === undefined ? [] : [{ rank, instruction, reason: this.#blockedBy(rank, instruction) ?? "" }];
    });
    return waiting.length > 0 ? { deadlock: { waiting }, step: null } : { deadlock: null, step: this.#summary() };
  }

  #blockedBy(rank: number, instruction: Instruction): string | null {
    const { kind, peer } = instruction;
    if (kind === "recv-forward" || kind === "recv-backward") {
      const { sent, received } = this.#link(peer!, rank);
      const head = sent[received.length];
      if (head === undefined) return `nothing came from rank ${peer}`;
      return head.tag === tagOf(instruction) ? null : `rank ${peer} sent ${head.tag} first`;
    }
    if (kind === "send-forward" || kind === "send-backward") {
      const { sent, received } = this.#link(rank, peer!);
      return sent.length - received.length < this.#model.buffer ? null : `no room towards rank ${peer}`;
    }
    return null;
  }

  #execute(rank: number, state: RankState, instruction: Instruction): void {
    const { kind, segment, microBatch, peer } = instruction;
    switch (kind) {
      case "forward":
        this.#compute(state, this.#times.forward(segment, microBatch));
        if (this.#learning.has(segment)) this.#hold(state, segment, 1);
        return;
      case "backward":
        this.#compute(state, this.#times.backward(segment, microBatch));
        this.#hold(state, segment, -1);
        return;
      case "recv-forward":
      case "recv-backward": {
        const { sent, received } = this.#link(peer!, rank);
        state.clock = Math.max(state.clock, sent[received.length]!.arrival);
        received.push(state.clock);
        return;
      }
      case "send-forward":
      case "send-backward": {
        const link = this.#link(rank, peer!);
        const room = link.received[link.sent.length - this.#model.buffer];
        state.clock = Math.max(state.clock, room ?? 0);
        const bytes = this.#model.messageBytes(microBatch);
        link.free = Math.max(state.clock, link.free) + bytes / this.#model.bytesPerSecond(rank, peer!);
        link.sent.push({ tag: tagOf(instruction), arrival: link.free + this.#model.latency(rank, peer!) });
        state.sentBytes += bytes;
      }
    }
  }

  #compute(state: RankState, seconds: number): void {
    state.clock += seconds;
    state.busy += seconds;
  }

  #hold(state: RankState, segment: number, change: number): void {
    const held = (state.held.get(segment) ?? 0) + change;
    state.held.set(segment, held);
    state.peakHeld.set(segment, Math.max(held, state.peakHeld.get(segment) ?? 0));
  }

  #link(from: number, to: number): LinkState {
    const key = from * this.#lists.length + to;
    const known = this.#links.get(key);
    if (known !== undefined) return known;
    const link: LinkState = { sent: [], received: [], free: 0 };
    this.#links.set(key, link);
    return link;
  }

  #summary(): SimulatedStep {
    const stepTime = Math.max(...this.#ranks.map((state) => state.clock));
    const ranks = this.#ranks.map(({ busy, sentBytes, peakHeld }) => ({
      busy,
      bubble: stepTime === 0 ? 0 : 1 - busy / stepTime,
      sentBytes,
      peakHeld,
    }));
    const working = ranks.filter((_, rank) => this.#lists[rank]!.length > 0);
    const busy = working.reduce((sum, rank) => sum + rank.busy, 0);
    return {
      stepTime,
      bubble: stepTime === 0 ? 0 : 1 - busy / (working.length * stepTime),
      bytes: ranks.reduce((sum, rank) => sum + rank.sentBytes, 0),
      ranks,
    };
  }
}

/** What a message is, from either end: both name it by the segment that receives it. */
function tagOf({ kind, segment, microBatch }: Instruction): string {
  switch (kind) {
    case "send-forward":
      return `input ${segment + 1}/${microBatch}`;
    case "recv-forward":
      return `input ${segment}/${microBatch}`;
    case "send-backward":
      return `gradient ${segment - 1}/${microBatch}`;
    default:
      return `gradient ${segment}/${microBatch}`;
  }
}
