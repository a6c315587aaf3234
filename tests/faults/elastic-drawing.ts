import { createHash } from "node:crypto";
import { choose, wholeBetween } from "./drawing.ts";
import { MOST_WORKERS } from "./settings.ts";
import type { Kind, Moment } from "./space.ts";

/** What happens to the workers of an elastic run. */
export const EVENTS = ["join", "leave", "kill", "stop", "cut"] as const;
export type ElasticEvent = (typeof EVENTS)[number];

/** When; "change": while the change that the event before brought about is under way. */
export const ELASTIC_MOMENTS = [
  "join",
  "load",
  "forward",
  "backward",
  "update",
  "save",
  "eval",
  "finish",
  "change",
] as const;
export type ElasticMoment = (typeof ELASTIC_MOMENTS)[number];

/** "each node": folders of nodes that are gone hold what was saved until then, and no more. */
export const ELASTIC_KINDS = [
  "plain",
  "replicas",
  "nf4",
  "dropout",
  "eval",
  "only model",
] as const satisfies readonly Kind[];

/** Stops are rare: each waits for ten seconds of silence. */
const WEIGHTS: Readonly<Record<ElasticEvent, number>> = { join: 5, leave: 5, kill: 5, stop: 1, cut: 2 };
const MOST_EVENTS = 3;

export interface DrawnEvent {
  readonly event: ElasticEvent;
  readonly moment: ElasticMoment;
  readonly draw: (decision: string) => number;
}

/** An elastic run and what happens to it, in this order. All that is random follows from seed and number. */
export interface ElasticCase {
  readonly seed: number;
  readonly number: number;
  readonly kind: (typeof ELASTIC_KINDS)[number];
  /** Workers at first. */
  readonly workers: number;
  /** Whether tensors go by gRPC, through proxies that can be cut. */
  readonly grpc: boolean;
  readonly events: readonly DrawnEvent[];
}

export function drawElastic(seed: number, number: number): ElasticCase {
  const draw = (decision: string) => fraction(`elastic/${seed}/${number}/${decision}`);
  const kind = choose(ELASTIC_KINDS, draw("kind"));
  const count = wholeBetween(1, MOST_EVENTS, draw("events"));
  const lot = EVENTS.flatMap((event) => Array.from({ length: WEIGHTS[event] }, () => event));
  const events = Array.from({ length: count }, (_, index): DrawnEvent => {
    const own = (decision: string) => draw(`${index}/${decision}`);
    const moments = ELASTIC_MOMENTS.filter(
      (moment) =>
        (moment !== "eval" || kind === "eval") &&
        (moment !== "change" || index > 0) &&
        // What comes first can't follow, what comes last is not followed.
        ((moment !== "join" && moment !== "load") || index === 0) &&
        (moment !== "finish" || index === count - 1),
    );
    return {
      event: choose(lot, own("event")),
      moment: choose(moments, own("moment")),
      // Each in its part of the run.
      draw: (decision) =>
        ["step", "save", "evaluation"].includes(decision) ? (index + own(decision)) / count : own(decision),
    };
  });
  const grpc = events.some(({ event }) => event === "cut") || draw("link") < 0.3;
  const most = events[0]!.event === "join" ? MOST_WORKERS - 1 : MOST_WORKERS;
  return { seed, number, kind, workers: wholeBetween(2, most, draw("workers")), grpc, events };
}

/** The moment as those of other runs are called. */
export function plainMoment(moment: ElasticMoment): Moment | null {
  return moment === "change" ? null : moment;
}

function fraction(text: string): number {
  return createHash("sha256").update(text).digest().readUIntBE(0, 6) / 2 ** 48;
}
