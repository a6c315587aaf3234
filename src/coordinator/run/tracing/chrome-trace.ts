import type { TraceSpan__Output } from "../../../rpc/generated/pipelora/v1/TraceSpan.ts";

/** One rank's spans, and what is to be taken off its times to have the coordinator's. */
export interface RankTrace {
  /** "node/cuda:0 (NVIDIA H200)" */
  readonly name: string;
  readonly spans: readonly TraceSpan__Output[];
  readonly offsetMs: number;
  /** Half the round trip in which the offset was measured: it can't be wrong by more. */
  readonly errorMs: number;
}

/** A step as the coordinator sees it, from its request to its sums. */
export interface StepSpan {
  readonly step: number;
  readonly startMs: number;
  readonly endMs: number;
}

type Event = Readonly<Record<string, unknown>>;

const COORDINATOR = 0;
/** Rows of a rank; kinds that are in neither overlap each other, and have rows that the viewer makes. */
const COMPUTE = 0;
const WAIT = 1;
const OVERLAPPING: ReadonlySet<string> = new Set(["send", "receive"]);

/** The JSON of Chrome's trace event format, which Perfetto and chrome://tracing open: a process a rank, all on the coordinator's clock. */
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

/** To the nanosecond. */
function micros(ms: number): number {
  return Math.round(ms * 1e6) / 1e3;
}
