import type { TraceSpan__Output } from "../../../rpc/generated/pipelora/v1/TraceSpan.ts";

/** One rank's spans, and the offset to subtract from its times to get the coordinator's. */
export interface RankTrace {
  /** For example "node/cuda:0 (NVIDIA H200)". */
  readonly name: string;
  readonly spans: readonly TraceSpan__Output[];
  readonly offsetMs: number;
  /** The most by which the offset can be wrong: half the round trip in which it was measured. */
  readonly errorMs: number;
}

/** A step as the coordinator sees it, from the request to the sums. */
export interface StepSpan {
  readonly step: number;
  readonly startMs: number;
  readonly endMs: number;
}

type Event = Readonly<Record<string, unknown>>;

const COORDINATOR = 0;
/** Rows of a rank in the viewer. Spans of other kinds overlap each other: the viewer makes rows for them. */
const COMPUTE = 0;
const WAIT = 1;
const OVERLAPPING: ReadonlySet<string> = new Set(["send", "receive"]);

/** A trace in Chrome's trace event format, for Perfetto and chrome://tracing. Each rank is a process; all times are on the coordinator's clock. */
export function chromeTrace(steps: readonly StepSpan[], ranks: readonly RankTrace[]): object {
  const first = Math.min(
    ...steps.map(({ startMs }) => startMs),
    ...ranks.flatMap(({ spans, offsetMs }) => spans.map(({ startMs }) => startMs - offsetMs)),
  );
  const at = (ms: number) => micros(ms - first);
  return {
    displayTimeUnit: "ms",
    otherData: {
      began: Number.isFinite(first) ? new Date(first).toISOString() : null,
      clock_error_ms: Object.fromEntries(ranks.map(({ errorMs }, rank) => [rank, errorMs])),
    },
    traceEvents: [
      ...processEvents(COORDINATOR, "coordinator"),
      ...threadEvents(COORDINATOR, ["steps"]),
      ...steps.map(({ step, startMs, endMs }) => ({
        ...{ ph: "X", name: `step ${step}`, cat: "step", pid: COORDINATOR, tid: 0 },
        ...{ ts: at(startMs), dur: micros(endMs - startMs), args: { step } },
      })),
      ...ranks.flatMap((rank, index) => rankEvents(rank, index, at)),
    ],
  };
}

function rankEvents({ name, spans, offsetMs }: RankTrace, rank: number, at: (ms: number) => number): Event[] {
  const pid = rank + 1;
  return [
    ...processEvents(pid, `rank ${rank}: ${name}`),
    ...threadEvents(pid, ["compute", "waiting for a peer"]),
    ...spans.flatMap((span, index): Event[] => {
      const { kind, startMs, endMs } = span;
      const event = { name: label(span), cat: kind, pid, args: argsOf(span) };
      const ts = at(startMs - offsetMs);
      if (!OVERLAPPING.has(kind)) {
        return [{ ph: "X", ...event, tid: kind === "wait" ? WAIT : COMPUTE, ts, dur: micros(endMs - startMs) }];
      }
      const id = `${rank}/${index}`;
      return [
        { ph: "b", ...event, id, tid: COMPUTE, ts },
        { ph: "e", ...event, id, tid: COMPUTE, ts: at(endMs - offsetMs) },
      ];
    }),
  ];
}

function label({ kind, segment, microBatch, peer }: TraceSpan__Output): string {
  const what = microBatch === undefined ? kind : `${kind} ${segment}/${microBatch}`;
  return peer === undefined ? what : `${what} ${kind === "send" ? "to" : "from"} rank ${peer}`;
}

function argsOf({ step, segment, microBatch, peer }: TraceSpan__Output): Event {
  return { step, segment, micro_batch: microBatch, peer };
}

function processEvents(pid: number, name: string): Event[] {
  return [
    { ph: "M", name: "process_name", pid, args: { name } },
    { ph: "M", name: "process_sort_index", pid, args: { sort_index: pid } },
  ];
}

function threadEvents(pid: number, names: readonly string[]): Event[] {
  return names.map((name, tid) => ({ ph: "M", name: "thread_name", pid, tid, args: { name } }));
}

/** Microseconds, to the nanosecond. */
function micros(ms: number): number {
  return Math.round(ms * 1e6) / 1e3;
}
