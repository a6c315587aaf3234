import type { ScheduleRequest } from "./instruction.ts";

/** What a policy may look at. Counts are of micro-batches started, which go in ascending order through every segment. */
export interface Progress {
  readonly segments: number;
  readonly microBatches: number;
  readonly segmentsOf: readonly (readonly number[])[];
  readonly forwards: readonly number[];
  readonly backwards: readonly number[];
  /** The lowest segment that learns; `segments` when none does. */
  readonly lowest: number;
  readonly trains: boolean;
}

/** A policy decides which of the operations that could start on a rank may, and in which order it prefers them. */
export interface Policy {
  /** Segments of `rank` whose next forward or backward may start now, as far as the policy is concerned; the preferred first. */
  candidates(rank: number, progress: Progress): Iterable<Candidate>;
  /** What a rank may start instead when every rank waits. */
  whenStuck?(rank: number, progress: Progress): Iterable<Candidate>;
}

export interface Candidate {
  readonly segment: number;
  readonly backward: boolean;
}

/** Older micro-batches first; of equal age, the deeper segment: what lies nearest to the end frees memory soonest. */
function oldestFirst(segments: readonly number[], counts: readonly number[]): number[] {
  return [...segments].sort((a, b) => counts[a]! - counts[b]! || b - a);
}

function* forwards(segments: readonly number[], progress: Progress): Iterable<Candidate> {
  for (const segment of oldestFirst(segments, progress.forwards)) yield { segment, backward: false };
}

function* backwards(segments: readonly number[], progress: Progress): Iterable<Candidate> {
  for (const segment of oldestFirst(segments, progress.backwards)) yield { segment, backward: true };
}

/** Micro-batches of `segment` that are under way: forwarded there, not yet gone back through it or through the lowest segment that learns. */
function inFlight(segment: number, { lowest, forwards, backwards }: Progress): number {
  return forwards[segment]! - backwards[Math.max(segment, lowest)]!;
}

/** Backward whenever possible, else forward while fewer than (segments − segment) micro-batches are in flight. */
export const oneForwardOneBackward: Policy = {
  *candidates(rank, progress) {
    const segments = progress.segmentsOf[rank]!;
    yield* backwards(segments, progress);
    for (const candidate of forwards(segments, progress)) {
      const { segment } = candidate;
      if (!progress.trains || inFlight(segment, progress) < progress.segments - segment) yield candidate;
    }
  },
};

export const gpipe: Policy = {
  *candidates(rank, progress) {
    const segments = progress.segmentsOf[rank]!;
    yield* forwards(segments, progress);
    if (segments.every((segment) => progress.forwards[segment] === progress.microBatches)) {
      yield* backwards(segments, progress);
    }
  },
};

export const oneAtATime: Policy = {
  *candidates(rank, progress) {
    const segments = progress.segmentsOf[rank]!;
    yield* backwards(segments, progress);
    const finished = progress.trains ? progress.backwards[progress.lowest]! : progress.forwards[progress.segments - 1]!;
    for (const candidate of forwards(segments, progress)) {
      if (progress.forwards[candidate.segment]! <= finished) yield candidate;
    }
  },
};

/**
 * Megatron-LM's interleaving: segment i on rank i mod p. Micro-batches go in groups of p: a rank runs a group through its
 * first segment, then through its second, and so on; backward in the same groups from the last segment to the first. After a
 * warm-up of 2 (p − rank − 1) + (v − 1) p forwards it alternates. A last, smaller group breaks the beat: where every rank waits, one
 * goes on with whatever is there.
 */
export function interleaved(ranks: number): Policy {
  const turns = (rank: number, { segmentsOf, lowest, forwards, backwards, microBatches }: Progress) => {
    const segments = segmentsOf[rank]!;
    const learning = segments.filter((segment) => segment >= lowest).reverse();
    return {
      forward: nextOfGroup(segments, forwards, microBatches, ranks),
      backward: nextOfGroup(learning, backwards, microBatches, ranks),
    };
  };
  return {
    *candidates(rank, progress) {
      const segments = progress.segmentsOf[rank]!;
      const { forward, backward } = turns(rank, progress);
      const held = segments.reduce((sum, segment) => sum + inFlight(segment, progress), 0);
      const most = 2 * (ranks - rank - 1) + (segments.length - 1) * ranks + 1;
      if (forward !== null && (!progress.trains || held < most)) yield { segment: forward, backward: false };
      else if (backward !== null) yield { segment: backward, backward: true };
    },
    *whenStuck(rank, progress) {
      const { forward, backward } = turns(rank, progress);
      if (backward !== null) yield { segment: backward, backward: true };
      if (forward !== null) yield { segment: forward, backward: false };
    },
  };
}

/** The segment whose turn it is: the first, in the given order, that has not finished the oldest unfinished group. */
function nextOfGroup(order: readonly number[], counts: readonly number[], total: number, size: number): number | null {
  const oldest = Math.min(total, ...order.map((segment) => counts[segment]!));
  if (oldest === total) return null;
  const end = Math.min(total, (Math.floor(oldest / size) + 1) * size);
  return order.find((segment) => counts[segment]! < end)!;
}

/** Whether segments go round robin over the ranks, more than one a rank: what interleaving is defined for. */
export function isRoundRobin({ segments }: Pick<ScheduleRequest, "segments">, ranks: number): boolean {
  return (
    segments.length > ranks &&
    segments.length % ranks === 0 &&
    segments.every((segment, index) => segment.rank === index % ranks)
  );
}
