import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import type { Change, Evaluation, Points, Revisions, RunSummary, Series } from "../src/serve/page/wire.ts";
import { OneAtATime } from "./one-at-a-time.ts";
import { ask, changes, ServerError } from "./server.ts";

export interface Asked<T> {
  readonly value: T | null;
  readonly error: ServerError | null;
}

/** What `path` answers, again whenever `again` changes. The old answer stays until the new one is there. */
export function useAnswer<T>(path: string, query: Readonly<Record<string, string | number>>, again: unknown): Asked<T> {
  const [asked, setAsked] = useState<Asked<T> & { readonly of: string }>({ value: null, error: null, of: "" });
  const asking = useRef<OneAtATime | null>(null);
  const text = JSON.stringify([path, query]);
  useEffect(() => {
    const own = new OneAtATime((signal) =>
      ask<T>(path, query, signal).then(
        (value) => setAsked({ value, error: null, of: text }),
        (error: unknown) => {
          if (signal.aborted) return;
          setAsked(({ value, of }) => ({ value: of === text ? value : null, error: asServerError(error), of: text }));
        },
      ),
    );
    asking.current = own;
    return () => own.end();
  }, [text]);
  useEffect(() => asking.current?.ask(), [text, again]);
  return asked.of === text ? asked : { value: null, error: null };
}

export function useEvery(ms: number | null, act: () => void): void {
  const latest = useRef(act);
  latest.current = act;
  useEffect(() => {
    if (ms === null) return;
    const timer = setInterval(() => {
      if (document.visibilityState === "visible") latest.current();
    }, ms);
    return () => clearInterval(timer);
  }, [ms]);
}

export interface LiveRun {
  readonly summary: RunSummary | null;
  readonly revisions: Revisions | null;
  /** The connection is lost; it is tried again. */
  readonly lost: boolean;
  /** Calls back with what came; null: what was known of the points is no longer true. */
  readonly onPoints: (hear: (points: Points | null) => void) => () => void;
}

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;

/** A run as it goes. `failed` hears of what trying again won't mend. */
export function useLiveRun(run: string | null, failed: (error: ServerError) => void): LiveRun {
  const [state, setState] = useState<Pick<LiveRun, "summary" | "revisions" | "lost">>({
    summary: null,
    revisions: null,
    lost: false,
  });
  const hearers = useRef(new Set<(points: Points | null) => void>());
  const onPoints = useCallback((hear: (points: Points | null) => void) => {
    hearers.current.add(hear);
    return () => {
      hearers.current.delete(hear);
    };
  }, []);
  useEffect(() => {
    setState({ summary: null, revisions: null, lost: false });
    if (run === null) return;
    const ending = new AbortController();
    const hear = ({ summary, revisions, points }: Change) => {
      setState({ summary, revisions, lost: false });
      for (const one of hearers.current) one(points);
    };
    void listen(run, hear, () => setState((before) => ({ ...before, lost: true })), failed, ending.signal);
    return () => ending.abort();
  }, [run]);
  return { ...state, onPoints };
}

async function listen(
  run: string,
  hear: (change: Change) => void,
  lost: () => void,
  failed: (error: ServerError) => void,
  signal: AbortSignal,
): Promise<void> {
  for (let wait = FIRST_WAIT_MS; !signal.aborted; wait = Math.min(LONGEST_WAIT_MS, 2 * wait)) {
    try {
      // Rows that are not known anew after a connection was lost: the first event says to ask for all.
      for await (const change of changes(run, { generation: 0, rows: Number.MAX_SAFE_INTEGER }, signal)) {
        wait = FIRST_WAIT_MS;
        hear(change);
      }
    } catch (error) {
      if (signal.aborted) return;
      const known = asServerError(error);
      if (known.status === 401 || known.status === 404) return failed(known);
    }
    if (signal.aborted) return;
    lost();
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

export type Range =
  | { readonly kind: "all" }
  | { readonly kind: "last"; readonly steps: number }
  | { readonly kind: "span"; readonly from: number; readonly to: number };

/** As many as are drawn; when live ones have made it twice that, all are asked for anew. */
const POINTS = 1_200;

export interface RunSeries {
  readonly points: Points;
  readonly evaluations: readonly Evaluation[];
}

/** A run's points of a range, kept up to date. */
export function useSeries(run: string, range: Range, live: LiveRun): Asked<RunSeries> {
  const [asked, setAsked] = useState<Asked<RunSeries>>({ value: null, error: null });
  const asking = useRef<OneAtATime | null>(null);
  const rangeText = JSON.stringify(range);
  const last = useRef(0);
  last.current = live.summary?.step ?? 0;
  useEffect(() => {
    const most = 2 * (range.kind === "last" ? Math.min(POINTS, range.steps) : POINTS);
    /** What comes before an answer does, which may have been made before it. */
    let early: Points[] | null = null;
    const own = new OneAtATime(async (signal) => {
      early = [];
      try {
        const query = { run, points: POINTS, ...bounds(range, last.current) };
        const { points, evaluations } = await ask<Series>("page/series", query, signal);
        setAsked({ value: { points: early.reduce(extended, points), evaluations }, error: null });
      } catch (error) {
        if (!signal.aborted) setAsked((before) => ({ ...before, error: asServerError(error) }));
      }
      early = null;
    });
    const hear = (points: Points | null) => {
      if (points === null) return own.ask();
      early?.push(points);
      setAsked(({ value, error }) => {
        if (value === null) return { value, error };
        const longer = extended(value.points, points);
        if (longer.step.length > most) own.ask();
        return { value: { ...value, points: longer }, error };
      });
    };
    const forget = range.kind === "span" ? () => {} : live.onPoints(hear);
    asking.current = own;
    return () => {
      own.end();
      forget();
    };
  }, [run, rangeText]);
  useEffect(() => asking.current?.ask(), [run, rangeText, live.revisions?.evaluations]);
  return asked;
}

function bounds(range: Range, last: number): Record<string, number> {
  if (range.kind === "all") return {};
  if (range.kind === "last") return { from: Math.max(0, last - range.steps + 1) };
  return { from: range.from, to: range.to };
}

/** Points that are known already are not there twice. */
function extended(points: Points, more: Points): Points {
  const last = points.step.at(-1) ?? 0;
  const first = more.step.findIndex((step) => step > last);
  if (first < 0) return points;
  const joined = Object.entries(points).map(([name, values]) => [
    name,
    [...values, ...more[name as keyof Points].slice(first)],
  ]);
  return Object.fromEntries(joined) as Points;
}

export function asServerError(thrown: unknown): ServerError {
  return thrown instanceof ServerError ? thrown : new ServerError(0, (thrown as Error).message);
}
