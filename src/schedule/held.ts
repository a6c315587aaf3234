import { dealOf, mostInGroups } from "./groups.ts";
import { type ScheduleRequest, turnsOf } from "./instruction.ts";

type Shape = Pick<ScheduleRequest, "segments" | "microBatches" | "policy">;

/** Whether micro-batches go through these segments in groups. */
export function goesInGroups({ segments, policy }: Omit<Shape, "microBatches">): boolean {
  const deal = policy === "interleaved" || policy === "1f1b" ? dealOf(segments) : null;
  return deal !== null && (deal.shared !== null || (policy === "interleaved" && deal.chunks > 1));
}

/**
 * The most micro-batches that 1F1B has in flight in each segment, on all its ranks together: one for each rank of it and of the segments
 * after it.
 */
export function roomOf(segments: Shape["segments"]): number[] {
  const room = segments.map(() => 0);
  let behind = 0;
  for (let segment = segments.length - 1; segment >= 0; segment--) {
    behind += segments[segment]!.ranks.length;
    room[segment] = behind;
  }
  return room;
}

/**
 * The most that a rank holds at once for micro-batches between forward and backward: an upper bound for the instruction lists of these
 * segments. `kept`: what a segment keeps for one micro-batch, in any unit; the result has the same unit.
 */
export function mostHeld(
  { segments, microBatches, policy }: Shape,
  rank: number,
  kept: (segment: number) => number,
): number {
  const own = segments.flatMap(({ ranks }, segment) => (ranks.includes(rank) ? [segment] : []));
  const each = (segment: number, most: number) =>
    Math.min(turnsOf(segments[segment]!, rank, microBatches), most) * kept(segment);
  const sum = (most: (segment: number) => number) =>
    own.reduce((total, segment) => total + each(segment, most(segment)), 0);
  if (policy === "sequential") return sum(() => 1);
  if (policy === "gpipe") return sum(() => microBatches);
  if (!goesInGroups({ segments, policy })) {
    const room = roomOf(segments);
    return sum((segment) => Math.ceil(room[segment]! / segments[segment]!.ranks.length));
  }
  const deal = dealOf(segments)!;
  const dealt = own.filter((segment) => segment !== deal.shared?.segment);
  const largest = Math.max(0, ...dealt.map(kept));
  // With several segments a rank, a last, smaller group adds at most another group in flight; first segments that are not trained add one
  // micro-batch.
  const whole = microBatches % deal.ranks.length === 0;
  const broken = deal.chunks === 1 ? 0 : whole ? 1 : deal.ranks.length + 1;
  const held = Math.min(microBatches * dealt.length, mostInGroups(deal, rank) + broken);
  return held * largest + (dealt.length < own.length ? each(deal.shared!.segment, 1) : 0);
}
