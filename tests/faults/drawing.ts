import { createHash } from "node:crypto";
import { FAULTS, type Point, pointsOf } from "./space.ts";

/** One run with one fault. All that is random about it follows from seed and number. */
export interface Case extends Point {
  readonly seed: number;
  /** Its number among the runs of this seed. */
  readonly number: number;
  /** A number in [0, 1) for each decision, by the decision's name. */
  readonly draw: (decision: string) => number;
}

const POINTS = new Map(FAULTS.map((fault) => [fault, pointsOf(fault)]));

export function drawCase(seed: number, number: number): Case {
  const draw = (decision: string) => fraction(`${seed}/${number}/${decision}`);
  // Faults go round, each round in another order: a few runs meet every fault.
  const round = Math.floor(number / FAULTS.length);
  const order = [...FAULTS].sort((a, b) => fraction(`${seed}/${round}/${a}`) - fraction(`${seed}/${round}/${b}`));
  const points = POINTS.get(order[number % FAULTS.length]!)!;
  // A fault's moments are drawn alike, however many settings each has; so are the places of a moment.
  const moment = choose([...new Set(points.map((point) => point.moment))], draw("moment"));
  const there = points.filter((point) => point.moment === moment);
  const place = choose([...new Set(there.map((point) => point.place))], draw("place"));
  const point = choose(
    there.filter((candidate) => candidate.place === place),
    draw("kind"),
  );
  return { ...point, seed, number, draw };
}

/** The one at this share of a list. */
export function choose<T>(list: readonly T[], share: number): T {
  if (list.length === 0) throw new Error("nothing to choose from");
  return list[Math.floor(share * list.length)]!;
}

/** A number of [from, to). */
export function between(from: number, to: number, share: number): number {
  return from + share * (to - from);
}

/** A whole number of from..to. */
export function wholeBetween(from: number, to: number, share: number): number {
  return Math.floor(between(from, to + 1, share));
}

function fraction(text: string): number {
  return createHash("sha256").update(text).digest().readUIntBE(0, 6) / 2 ** 48;
}
