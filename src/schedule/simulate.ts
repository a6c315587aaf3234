import { PipeloraError } from "../common/errors.ts";
import type { Instruction } from "./instruction.ts";

/** Seconds of each operation on the rank that runs it. */
export interface OperationTimes {
  readonly forward: (segment: number, microBatch: number) => number;
  readonly backward: (segment: number, microBatch: number) => number;
}

/** How links behave. Sends and receives overlap compute. Messages in one direction go one after another. */
export interface LinkModel {
  /** Seconds before the first byte arrives. */
  readonly latency: (from: number, to: number) => number;
  readonly bytesPerSecond: (from: number, to: number) => number;
  /** Bytes of one activation or activation gradient. */
  readonly messageBytes: (microBatch: number) => number;
  /** How many messages in one direction may be sent and not yet received. A sender waits for room. Infinity: it never waits. */
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
  /** The most micro-batches whose activations it held at once, by segment. Only segments with a backward pass are counted. */
  readonly peakHeld: ReadonlyMap<number, number>;
}

export interface SimulatedStep {
  readonly stepTime: number;
  /** 1 − compute of all ranks that hold segments / (those ranks × step time). */
  readonly bubble: number;
  readonly bytes: number;
  readonly ranks: readonly SimulatedRank[];
}

/** A deadlock of instruction lists: each rank that waits, and what it waits for. */
export interface Deadlock {
  readonly waiting: readonly { readonly rank: number; readonly instruction: Instruction; readonly reason: string }[];
}

export type SimulationResult =
  | { readonly deadlock: null; readonly step: SimulatedStep }
  | { readonly deadlock: Deadlock; readonly step: null };

/** Ranks that share cores. Up to `fullSpeed` ranks of a group compute at full speed at once. More of them share that speed evenly. */
export interface SharedCores {
  readonly groupOf: (rank: number) => string;
  readonly fullSpeed: (group: string) => number;
}

/**
 * Runs instruction lists in simulated time. Each direction between two ranks is one first-in first-out queue. A receive that finds another
 * message at its head would wait for ever, as on a real link of that kind: this counts as a deadlock.
 */
export function simulate(
  lists: readonly (readonly Instruction[])[],
  times: OperationTimes,
  links: LinkModel = IDEAL_LINKS,
  cores: SharedCores | null = null,
): SimulationResult {
  return new Simulation(lists, times, links, cores).run();
}

/** simulate for lists that must run to the end. Errors: PL_INTERNAL, which says which rank waits for what. */
export function simulateStep(
  lists: readonly (readonly Instruction[])[],
  times: OperationTimes,
  links: LinkModel = IDEAL_LINKS,
  cores: SharedCores | null = null,
): SimulatedStep {
  const { deadlock, step } = simulate(lists, times, links, cores);
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
  /** How many of them have been received. */
  received: number;
  /** When the link is free again: the last message has been sent. */
  free: number;
}

interface Computing {
  readonly instruction: Instruction;
  readonly began: number;
  /** When the operation ends at its present rate. */
  end: number;
  rate: number;
}

interface RankState {
  next: number;
  clock: number;
  computing: Computing | null;
  /** When the awaited message arrives, if that is known. */
  wakes: number;
  busy: number;
  sentBytes: number;
  readonly held: Map<number, number>;
  readonly peakHeld: Map<number, number>;
}

class Simulation {
  readonly #lists: readonly (readonly Instruction[])[];
  readonly #times: OperationTimes;
  readonly #model: LinkModel;
  readonly #cores: SharedCores | null;
  readonly #ranks: RankState[];
  readonly #links = new Map<number, LinkState>();
  readonly #learning: ReadonlySet<number>;
  #now = 0;

  constructor(
    lists: readonly (readonly Instruction[])[],
    times: OperationTimes,
    model: LinkModel,
    cores: SharedCores | null,
  ) {
    this.#lists = lists;
    this.#times = times;
    this.#model = model;
    this.#cores = cores;
    this.#ranks = lists.map(() => ({
      ...{ next: 0, clock: 0, computing: null, wakes: Number.POSITIVE_INFINITY, busy: 0, sentBytes: 0 },
      ...{ held: new Map(), peakHeld: new Map() },
    }));
    this.#learning = new Set(
      lists.flatMap((list) => list.filter(({ kind }) => kind === "backward").map(({ segment }) => segment)),
    );
  }

  run(): SimulationResult {
    let ready = this.#ranks.map((_, rank) => rank);
    while (ready.length > 0) {
      this.#proceed(ready);
      this.#shareCores();
      const next = Math.min(...this.#ranks.map(({ computing, wakes }) => computing?.end ?? wakes));
      if (next === Number.POSITIVE_INFINITY) break;
      this.#now = next;
      ready = [];
      for (const [rank, state] of this.#ranks.entries()) {
        if (state.computing !== null ? state.computing.end > next : state.wakes > next) continue;
        if (state.computing !== null) this.#finish(state, state.computing);
        ready.push(rank);
      }
    }
    const waiting = this.#ranks.flatMap((state, rank) => {
      const instruction = this.#lists[rank]![state.next];
      return instruction === undefined ? [] : [{ rank, instruction, reason: this.#blockedBy(rank, instruction) ?? "" }];
    });
    return waiting.length > 0 ? { deadlock: { waiting }, step: null } : { deadlock: null, step: this.#summary() };
  }

  /** Runs what takes no time, on these ranks and on any that may go on because of it, and starts compute. */
  #proceed(ranks: readonly number[]): void {
    const ready = [...ranks];
    for (let rank = ready.pop(); rank !== undefined; rank = ready.pop()) {
      const state = this.#ranks[rank]!;
      const list = this.#lists[rank]!;
      while (state.computing === null && state.next < list.length) {
        const instruction = list[state.next]!;
        if (this.#blockedBy(rank, instruction) !== null || !this.#execute(rank, state, instruction)) break;
        if (instruction.peer !== undefined) ready.push(instruction.peer);
      }
    }
  }

  #blockedBy(rank: number, instruction: Instruction): string | null {
    const { kind, peer } = instruction;
    if (kind === "recv-forward" || kind === "recv-backward") {
      const { sent, received } = this.#link(peer!, rank);
      const head = sent[received];
      if (head === undefined) return `nothing came from rank ${peer}`;
      return head.tag === tagOf(instruction) ? null : `rank ${peer} sent ${head.tag} first`;
    }
    if (kind === "send-forward" || kind === "send-backward") {
      const { sent, received } = this.#link(rank, peer!);
      return sent.length - received < this.#model.buffer ? null : `no room towards rank ${peer}`;
    }
    return null;
  }

  /** Returns false if the instruction waits for a message that has not arrived. */
  #execute(rank: number, state: RankState, instruction: Instruction): boolean {
    const { kind, segment, microBatch, peer } = instruction;
    state.wakes = Number.POSITIVE_INFINITY;
    switch (kind) {
      case "forward":
        if (this.#learning.has(segment)) this.#hold(state, segment, 1);
        this.#compute(state, instruction, this.#times.forward(segment, microBatch));
        return true;
      case "backward":
        this.#compute(state, instruction, this.#times.backward(segment, microBatch));
        return true;
      case "recv-forward":
      case "recv-backward": {
        const link = this.#link(peer!, rank);
        const { arrival } = link.sent[link.received]!;
        if (arrival > this.#now) {
          state.wakes = arrival;
          return false;
        }
        link.received++;
        break;
      }
      case "send-forward":
      case "send-backward": {
        const link = this.#link(rank, peer!);
        const bytes = this.#model.messageBytes(microBatch);
        link.free = Math.max(this.#now, link.free) + bytes / this.#model.bytesPerSecond(rank, peer!);
        link.sent.push({ tag: tagOf(instruction), arrival: link.free + this.#model.latency(rank, peer!) });
        state.sentBytes += bytes;
      }
    }
    state.clock = this.#now;
    state.next++;
    return true;
  }

  #compute(state: RankState, instruction: Instruction, seconds: number): void {
    state.computing = { instruction, began: this.#now, end: this.#now + seconds, rate: 1 };
  }

  #finish(state: RankState, { instruction, began }: Computing): void {
    state.computing = null;
    state.busy += this.#now - began;
    state.clock = this.#now;
    state.next++;
    if (instruction.kind === "backward") this.#hold(state, instruction.segment, -1);
  }

  /** Recomputes when running operations end, from how many share the cores of each group. */
  #shareCores(): void {
    const cores = this.#cores;
    if (cores === null) return;
    const busy = new Map<string, number>();
    for (const [rank, { computing }] of this.#ranks.entries()) {
      if (computing !== null) busy.set(cores.groupOf(rank), (busy.get(cores.groupOf(rank)) ?? 0) + 1);
    }
    for (const [rank, { computing }] of this.#ranks.entries()) {
      if (computing === null) continue;
      const group = cores.groupOf(rank);
      const rate = Math.min(1, cores.fullSpeed(group) / busy.get(group)!);
      if (rate === computing.rate) continue;
      computing.end = this.#now + ((computing.end - this.#now) * computing.rate) / rate;
      computing.rate = rate;
    }
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
    const link: LinkState = { sent: [], received: 0, free: 0 };
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

/** The name of a message, the same at both ends: it contains the segment that receives it. */
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
