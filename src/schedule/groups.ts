import { remembered } from "../common/remembered.ts";
import type { ScheduledSegment } from "./instruction.ts";
import type { Candidate, Policy, Progress } from "./policy.ts";

/** Segments dealt out round robin, the same number to each rank. After them there may be one that several ranks share. */
export interface Deal {
  /** The ranks in pipeline order. */
  readonly ranks: readonly number[];
  /** Segments of each rank, without the shared one. */
  readonly chunks: number;
  /** The shared segment, and how many ranks take its micro-batches in turn; null if there is none. */
  readonly shared: { readonly segment: number; readonly ranks: number } | null;
}

/** How these segments are dealt out; null if they are not. */
function findDeal(segments: readonly Pick<ScheduledSegment, "ranks">[]): Deal | null {
  const last = segments.at(-1)!;
  const shared = last.ranks.length > 1 ? { segment: segments.length - 1, ranks: last.ranks.length } : null;
  const own = shared === null ? segments : segments.slice(0, -1);
  const ranks = [...new Set(own.flatMap((segment) => segment.ranks))];
  const dealt = own.every(
    (segment, index) => segment.ranks.length === 1 && segment.ranks[0] === ranks[index % ranks.length],
  );
  if (!dealt || own.length % ranks.length !== 0 || !last.ranks.every((rank) => ranks.includes(rank))) return null;
  return { ranks, chunks: own.length / ranks.length, shared };
}

const foundDeal = remembered((segments: readonly Pick<ScheduledSegment, "ranks">[]) => ({ deal: findDeal(segments) }));

/** How these segments are dealt out; null if they are not. Cached by list. */
export function dealOf(segments: readonly Pick<ScheduledSegment, "ranks">[]): Deal | null {
  return foundDeal(segments).deal;
}

/** How many micro-batches form a group: as many as there are ranks, or as many as share a segment. */
function groupOf({ ranks, chunks, shared }: Deal): number {
  return chunks === 1 && shared !== null ? shared.ranks : ranks.length;
}

/**
 * The most micro-batches in flight on a rank, added up over its segments without the shared one. This is Megatron-LM's warm-up plus one, or
 * with one segment a rank 1F1B's number. A shared segment adds a group less one, because the last rank runs a whole group forward before its
 * first backward pass.
 */
export function mostInGroups(deal: Deal, rank: number): number {
  const after = deal.ranks.length - 1 - deal.ranks.indexOf(rank);
  const plain = deal.chunks === 1 ? after + 1 : 2 * after + (deal.chunks - 1) * deal.ranks.length + 1;
  return plain + (deal.shared === null ? 0 : groupOf(deal) - 1);
}

/**
 * Megatron-LM's interleaved schedule over p ranks. Micro-batches form groups of p. A rank runs a group through its first segment, then through
 * its second, and so on. Backward passes go in the same groups from the last segment to the first. After a warm-up, forward and backward
 * passes alternate.
 *
 * All ranks of a shared segment run it at the same time, each for its own micro-batch of a group, so none waits for another. That time comes
 * when the last rank has done the group's forward passes and is about to do its first backward pass. A rank n places before it has then done
 * n more forward passes and n fewer backward passes. With several segments a rank knows its turn by the first count, with one by the second.
 *
 * With a last, smaller group every rank may come to wait. Then one goes on with any operation that can start.
 */
export function inGroups(deal: Deal): Policy {
  const { ranks, chunks, shared } = deal;
  const size = groupOf(deal);
  const most = new Map(ranks.map((rank) => [rank, mostInGroups(deal, rank)]));
  const own = (rank: number, { segmentsOf }: Progress) =>
    segmentsOf[rank]!.filter((segment) => segment !== shared?.segment);
  const turn = (order: readonly number[], rank: number, progress: Progress, backward: boolean): Candidate | null => {
    const segment = nextOfGroup(
      order,
      (one) => progress.next(rank, one, backward),
      progress.microBatches,
      ranks.length,
    );
    return segment === null ? null : { segment, backward };
  };
  const forward = (rank: number, progress: Progress) => turn(own(rank, progress), rank, progress, false);
  const backward = (rank: number, progress: Progress) => {
    const learning = own(rank, progress).filter((segment) => segment >= progress.lowest);
    return turn(learning.reverse(), rank, progress, true);
  };
  const forwards = (rank: number, progress: Progress) =>
    own(rank, progress).reduce((sum, segment) => sum + progress.next(rank, segment, false), 0);
  /** A segment below everything that is trained has no backward pass: the lowest segment with one stands for it. */
  const backwards = (rank: number, progress: Progress) =>
    own(rank, progress).reduce(
      (sum, segment) =>
        sum + (segment < progress.lowest ? progress.oldest(progress.lowest, true) : progress.next(rank, segment, true)),
      0,
    );
  /** What the rank does next in the shared segment; null if it has no part in it. */
  const sharedPass = (rank: number, progress: Progress): Candidate | null => {
    if (shared === null || !progress.segmentsOf[rank]!.includes(shared.segment)) return null;
    const { segment } = shared;
    const next = progress.next(rank, segment, false);
    if (progress.trains && progress.next(rank, segment, true) < next) return { segment, backward: true };
    return next < progress.microBatches ? { segment, backward: false } : null;
  };
  /** Whether it is time to run the shared segment for the group of this rank's next micro-batch there. */
  const isDue = ({ segment, backward: back }: Candidate, rank: number, progress: Progress) => {
    if (back) return true;
    const group = Math.floor(progress.next(rank, segment, false) / size);
    const ahead = ranks.length - 1 - ranks.indexOf(rank);
    if (chunks === 1) return backwards(rank, progress) >= group * size - ahead;
    const through = Math.min(progress.microBatches, (group + 1) * size) * chunks;
    return forwards(rank, progress) >= Math.min(progress.microBatches * chunks, through + ahead);
  };
  const mayForward = (rank: number, progress: Progress) =>
    forwards(rank, progress) - backwards(rank, progress) < most.get(rank)!;
  return {
    *candidates(rank, progress) {
      const pass = sharedPass(rank, progress);
      const next = forward(rank, progress);
      if (!progress.trains) {
        for (const candidate of [pass, next]) if (candidate !== null) yield candidate;
        return;
      }
      const due = pass !== null && isDue(pass, rank, progress) ? pass : null;
      const ready = next !== null && mayForward(rank, progress) ? next : null;
      // With one segment a rank, the rank's last forward pass before that comes at the same time.
      const turn = (chunks === 1 ? (ready ?? due) : (due ?? ready)) ?? backward(rank, progress);
      if (turn !== null) yield turn;
    },
    *whenStuck(rank, progress) {
      for (const of of [sharedPass, backward, forward]) {
        const candidate = of(rank, progress);
        if (candidate !== null) yield candidate;
      }
    },
  };
}

/** The segment that runs next: the first, in the given order, that has not finished the oldest unfinished group. */
function nextOfGroup(
  order: readonly number[],
  next: (segment: number) => number,
  total: number,
  size: number,
): number | null {
  const oldest = Math.min(total, ...order.map(next));
  if (oldest === total) return null;
  const end = Math.min(total, (Math.floor(oldest / size) + 1) * size);
  return order.find((segment) => next(segment) < end)!;
}
