import { useState } from "preact/hooks";
import { SPAN_KINDS, type Span, type SpanKind, type Timeline, type TimelineAnswer } from "../../src/serve/page/wire.ts";
import { type Chosen, COMPUTE, kindOf, moved, TimelineCanvas, type Window } from "../charts/timeline-canvas.tsx";
import { NONE, useFormat } from "../format.ts";
import { type LiveRun, useAnswer, useEvery } from "../hooks.ts";
import { useWords } from "../language.ts";
import { DataTable } from "../parts/data-table.tsx";
import { Empty, Waiting } from "../parts/notice.tsx";

/** While the view is open the run hears that somebody looks. */
const ASK_MS = 2_000;

export function TimelineView({ run, live }: { readonly run: string; readonly live: LiveRun }) {
  const [asked, setAsked] = useState(0);
  const running = live.summary?.status === "running";
  useEvery(running ? ASK_MS : null, () => setAsked((count) => count + 1));
  const { value, error } = useAnswer<TimelineAnswer>("page/timeline", { run }, `${asked} ${live.revisions?.timeline}`);
  const words = useWords();
  if (value === null) return <Waiting error={error} />;
  if (value.timeline === null) return <Empty>{words.timeline.none}</Empty>;
  return <Shown key={run} timeline={value.timeline} often={value.often} />;
}

function Shown({ timeline, often }: { readonly timeline: Timeline; readonly often: boolean }) {
  const words = useWords();
  const format = useFormat();
  const [chosen, setChosen] = useState<Chosen | null>(null);
  /** As shares of the step, so that the next one is shown alike. */
  const [part, setPart] = useState({ begin: 0, end: 1 });
  const [pointed, setPointed] = useState<Chosen | null>(null);
  const shown: Window = { begin: part.begin * timeline.ms, end: part.end * timeline.ms };
  const setWindow = ({ begin, end }: Window) => setPart({ begin: begin / timeline.ms, end: end / timeline.ms });
  const sums = timeline.ranks.map(({ spans }) => sumsOf(spans, timeline.ms));
  const idle = sums.reduce((all, { idleMs }) => all + idleMs, 0) / Math.max(1, sums.length) / timeline.ms;
  const zoom = (factor: number) => setWindow(zoomed(shown, factor, timeline.ms));

  const onKeyDown = (event: KeyboardEvent) => {
    const next = keyed(event.key, timeline, chosen, shown);
    if (event.key === "+" || event.key === "=") zoom(0.5);
    else if (event.key === "-") zoom(2);
    else if (next === null) return;
    else {
      setChosen(next);
      setWindow(around(next.span, shown, timeline.ms));
    }
    event.preventDefault();
  };
  const told = pointed ?? (chosen !== null && timeline.ranks[chosen.row]?.spans.includes(chosen.span) ? chosen : null);
  const clockError = Math.max(...timeline.ranks.map(({ clockErrorMs }) => clockErrorMs));
  return (
    <>
      <dl class="facts">
        <div>
          <dt>{words.timeline.took}</dt>
          <dd>{format.ms(timeline.ms)}</dd>
        </div>
        <div>
          <dt>{words.timeline.meanIdle}</dt>
          <dd>{format.share(idle)}</dd>
        </div>
      </dl>
      <figure class="card">
        <figcaption>
          <h3>{words.timeline.title(format.count(timeline.step))}</h3>
          <ul class="legend">
            {SPAN_KINDS.filter((kind) =>
              timeline.ranks.some(({ spans }) => spans.some((span) => kindOf(span) === kind)),
            ).map((kind) => (
              <li key={kind}>
                <i class={`swatch span-${kind}`} />
                {words.timeline.kind[kind]}
              </li>
            ))}
          </ul>
        </figcaption>
        <p class="hint">
          {words.timeline.text} {often ? words.timeline.often : words.timeline.seldom}
        </p>
        <div class="tools">
          <button type="button" onClick={() => zoom(0.5)}>
            {words.timeline.zoomIn}
          </button>
          <button type="button" onClick={() => zoom(2)} disabled={part.end - part.begin >= 1}>
            {words.timeline.zoomOut}
          </button>
          <button type="button" onClick={() => setPart({ begin: 0, end: 1 })} disabled={part.end - part.begin >= 1}>
            {words.timeline.whole}
          </button>
          <p class="told" aria-live="polite">
            {told === null ? NONE : spanText(told, timeline, words, format)}
          </p>
        </div>
        <div
          class="canvas"
          role="application"
          // biome-ignore lint/a11y/noNoninteractiveTabindex: its role says that it takes keys
          tabIndex={0}
          aria-label={words.timeline.picture(timeline.ranks.length, format.share(idle))}
          aria-describedby="timeline-hint"
          onKeyDown={onKeyDown}
        >
          <TimelineCanvas
            {...{ timeline, window: shown, chosen: pointed ?? chosen, onPoint: setPointed, onWindow: setWindow }}
          />
        </div>
        <p class="hint" id="timeline-hint">
          {words.timeline.hint} {words.timeline.clocks(format.number(clockError))}
        </p>
        <details>
          <summary>{words.table}</summary>
          <DataTable
            caption={words.timeline.title(format.count(timeline.step))}
            head={[
              words.placement.rank,
              ...SPAN_KINDS.map((kind) => words.timeline.kind[kind]),
              words.timeline.idle,
              words.timeline.idleShare,
            ]}
            rows={timeline.ranks.map(({ rank, name }, row) => [
              `${rank} ${name}`,
              ...SPAN_KINDS.map((kind) => (sums[row]!.kinds.has(kind) ? format.ms(sums[row]!.kinds.get(kind)!) : NONE)),
              format.ms(sums[row]!.idleMs),
              format.share(sums[row]!.idleMs / timeline.ms),
            ])}
            numbers
          />
        </details>
      </figure>
    </>
  );
}

type TimelineWords = ReturnType<typeof useWords>;

function spanText(
  { row, span }: Chosen,
  { ranks }: Timeline,
  words: TimelineWords,
  format: ReturnType<typeof useFormat>,
): string {
  const [, begin, length, segment, batch, peer] = span;
  const kind = words.timeline.kind[kindOf(span)];
  return [
    words.timeline.span(
      ranks[row]!.rank,
      peer < 0 ? kind : `${kind} ${words.timeline.peer(peer)}`,
      format.number(begin),
      format.number(length),
    ),
    ...(batch < 0 ? [] : [words.timeline.batch(segment, batch)]),
  ].join("; ");
}

/** Milliseconds by kind, and those in which nothing was computed. */
function sumsOf(
  spans: readonly Span[],
  ms: number,
): { readonly kinds: ReadonlyMap<SpanKind, number>; readonly idleMs: number } {
  const kinds = new Map<SpanKind, number>();
  let [worked, until] = [0, 0];
  for (const span of spans) {
    const kind = kindOf(span);
    kinds.set(kind, (kinds.get(kind) ?? 0) + span[2]);
    if (!COMPUTE.includes(kind)) continue;
    // Spans begin one after the other; what overlaps counts once.
    const end = Math.min(ms, span[1] + span[2]);
    worked += Math.max(0, end - Math.max(until, span[1]));
    until = Math.max(until, end);
  }
  return { kinds, idleMs: Math.max(0, ms - worked) };
}

function zoomed({ begin, end }: Window, factor: number, ms: number): Window {
  const length = Math.min(ms, Math.max(ms / 1000, (end - begin) * factor));
  const from = (begin + end - length) / 2;
  return moved({ begin: from, end: from + length }, Math.max(0, -from) - Math.max(0, from + length - ms), ms);
}

/** The window, shifted so that a span is in it. */
function around([, begin, length]: Span, shown: Window, ms: number): Window {
  if (begin >= shown.begin && begin + length <= shown.end) return shown;
  return moved(shown, begin + length / 2 - (shown.begin + shown.end) / 2, ms);
}

/** Where an arrow key leads; null: nowhere. */
function keyed(key: string, { ranks }: Timeline, chosen: Chosen | null, shown: Window): Chosen | null {
  const rows = { ArrowUp: -1, ArrowDown: 1 }[key];
  const spans = { ArrowLeft: -1, ArrowRight: 1 }[key];
  if (rows === undefined && spans === undefined) return null;
  const row = Math.max(0, Math.min(ranks.length - 1, (chosen?.row ?? (rows === 1 ? -1 : 0)) + (rows ?? 0)));
  const own = ranks[row]?.spans ?? [];
  const at = chosen === null ? -1 : own.indexOf(chosen.span);
  if (spans !== undefined && at >= 0) return { row, span: own[Math.max(0, Math.min(own.length - 1, at + spans))]! };
  const time = chosen?.span[1] ?? shown.begin;
  const near = own.find((span) => span[1] >= time) ?? own.at(-1);
  return near === undefined ? null : { row, span: near };
}
