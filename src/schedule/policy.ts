/** What a policy can see. A rank takes its own micro-batches of a segment in ascending order. */
export interface Progress {
  readonly segments: number;
  readonly microBatches: number;
  readonly segmentsOf: readonly (readonly number[])[];
  /** The lowest segment that is trained; `segments` if none is. */
  readonly lowest: number;
  readonly trains: boolean;
  /** The micro-batch whose pass through a segment this rank starts next; at least `microBatches` if it has started all. */
  next(rank: number, segment: number, backward: boolean): number;
  /** The oldest micro-batch that has not started that pass through a segment; at least `microBatches` if all have. */
  oldest(segment: number, backward: boolean): number;
}

/** A policy decides which operations a rank may start, and which of them it prefers. */
export interface Policy {
  /** The passes that the policy lets the rank start now, the preferred first. Whether their input is there is checked elsewhere. */
  candidates(rank: number, progress: Progress): Iterable<Candidate>;
  /** The passes that a rank may start if every rank waits. */
  whenStuck?(rank: number, progress: Progress): Iterable<Candidate>;
}

export interface Candidate {
  readonly segment: number;
  readonly backward: boolean;
}

/** Older micro-batches first. Of equal ones, the later segment: it is nearest to the end and frees memory soonest. */
function oldestFirst(rank: number, progress: Progress, backward: boolean): Candidate[] {
  return progress.segmentsOf[rank]!.map((segment) => ({ segment, next: progress.next(rank, segment, backward) }))
    .sort((a, b) => a.next - b.next || b.segment - a.segment)
    .map(({ segment }) => ({ segment, backward }));
}

/** 1F1B: backward whenever possible, else forward while the segment has fewer micro-batches in flight than `room` allows. */
export function oneForwardOneBackward(room: readonly number[]): Policy {
  return {
    *candidates(rank, progress) {
      yield* oldestFirst(rank, progress, true);
      for (const candidate of oldestFirst(rank, progress, false)) {
        const { segment } = candidate;
        const { trains, lowest } = progress;
        const end = trains
          ? progress.oldest(Math.max(segment, lowest), true) + room[segment]!
          : Number.POSITIVE_INFINITY;
        if (progress.next(rank, segment, false) < end) yield candidate;
      }
    },
  };
}

export const gpipe: Policy = {
  *candidates(rank, progress) {
    yield* oldestFirst(rank, progress, false);
    const { segmentsOf, microBatches } = progress;
    if (segmentsOf[rank]!.every((segment) => progress.next(rank, segment, false) >= microBatches)) {
      yield* oldestFirst(rank, progress, true);
    }
  },
};

export const oneAtATime: Policy = {
  *candidates(rank, progress) {
    yield* oldestFirst(rank, progress, true);
    const { trains, lowest, segments } = progress;
    const finished = trains ? progress.oldest(lowest, true) : progress.oldest(segments - 1, false);
    for (const candidate of oldestFirst(rank, progress, false)) {
      if (progress.next(rank, candidate.segment, false) <= finished) yield candidate;
    }
  },
};
