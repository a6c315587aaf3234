import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { useFormat } from "../format.ts";
import { TAGS, useLanguage, useWords } from "../language.ts";
import { DataTable } from "../parts/data-table.tsx";
import { colour, useColours } from "../theme.ts";

export interface Line {
  readonly label: string;
  readonly values: readonly (number | null)[];
  /** Name of a colour of the style sheet. */
  readonly colour: string;
  /** Least and most beside the line's mean. */
  readonly band?: { readonly low: readonly (number | null)[]; readonly high: readonly (number | null)[] };
  /** Single points, joined: there are few. */
  readonly sparse?: boolean;
}

export interface PlotProps {
  readonly title: string;
  readonly steps: readonly number[];
  readonly lines: readonly Line[];
  /** What is said where there is nothing to draw. */
  readonly empty: string;
  readonly logarithmic?: boolean;
  readonly onRange?: (from: number, to: number) => void;
}

const HEIGHT = 220;
/** Marks the two edges of a band among the series. */
const EDGE = "edge";
/** Share of a band's points at either end that the scale does not go by. */
const OUTLIERS = 0.02;
/** Rows of the table beside a curve: as many as somebody reads. */
const MOST_ROWS = 40;

/** Curves over steps: a picture, a slider that reads its points one by one, and a table. */
export function Plot(props: PlotProps) {
  const { title, steps, lines, empty } = props;
  const words = useWords();
  const format = useFormat();
  const [chosen, setChosen] = useState<number | null>(null);
  const drawn = lines.some(({ values }) => values.some((value) => value !== null));
  const at = chosen === null ? lastKnown(lines, steps.length) : Math.min(chosen, steps.length - 1);
  const read = (index: number) =>
    lines.flatMap(({ label, values }) => {
      const value = values[index] ?? null;
      return value === null ? [] : [`${label} ${format.number(value)}`];
    });
  const spoken = at < 0 ? empty : words.at(format.count(steps[at]!), read(at).join(", "));
  const onKeyDown = (event: KeyboardEvent) => {
    const moves: Record<string, number> = {
      ...{ ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 },
      ...{ PageUp: -20, PageDown: 20, Home: -steps.length, End: steps.length },
    };
    const move = moves[event.key];
    if (move === undefined) return;
    event.preventDefault();
    setChosen(nextKnown(lines, steps.length, at, move));
  };
  return (
    <figure class="card plot">
      <figcaption>
        <h3>{title}</h3>
        <ul class="legend">
          {lines.map((line) => (
            <li key={line.label}>
              <i class={`swatch ${line.colour}`} />
              <span class={lines.length === 1 ? "heard" : ""}>{line.label}</span>
              <b>{format.number(atOrBefore(line, at))}</b>
            </li>
          ))}
        </ul>
      </figcaption>
      {drawn ? (
        <div
          class="canvas"
          role="slider"
          tabIndex={0}
          aria-label={title}
          aria-valuemin={steps[0] ?? 0}
          aria-valuemax={steps.at(-1) ?? 0}
          aria-valuenow={steps[at] ?? 0}
          aria-valuetext={spoken}
          onKeyDown={onKeyDown}
          onBlur={() => setChosen(null)}
        >
          <Canvas {...props} chosen={chosen} onChosen={setChosen} />
        </div>
      ) : (
        <p class="empty">{empty}</p>
      )}
      <div class="under">
        <span class="at">{at < 0 ? "" : `${words.step} ${format.count(steps[at]!)}`}</span>
        {drawn && <PointTable {...props} />}
      </div>
    </figure>
  );
}

function PointTable({ title, steps, lines }: PlotProps) {
  const words = useWords();
  const format = useFormat();
  const known = steps.flatMap((_, index) => (lines.some(({ values }) => values[index] != null) ? [index] : []));
  const rows = evenly(known, MOST_ROWS).map((index) => [
    format.count(steps[index]!),
    ...lines.map(({ values }) => format.number(values[index] ?? null)),
  ]);
  return (
    <details>
      <summary>{words.table}</summary>
      <DataTable caption={title} head={[words.step, ...lines.map(({ label }) => label)]} rows={rows} numbers />
    </details>
  );
}

function Canvas({
  steps,
  lines,
  logarithmic,
  onRange,
  chosen,
  onChosen,
}: PlotProps & { readonly chosen: number | null; readonly onChosen: (index: number | null) => void }) {
  const holder = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const handlers = useRef({ onRange, onChosen });
  handlers.current = { onRange, onChosen };
  const format = useFormat();
  const colours = useColours();
  const tag = TAGS[useLanguage()];
  const shape = JSON.stringify([
    lines.map(({ label, band, sparse }) => [label, band !== undefined, sparse]),
    logarithmic,
  ]);
  const data = aligned(steps, lines);
  const latest = useRef(data);
  latest.current = data;

  useEffect(() => {
    const target = holder.current!;
    const made = new uPlot(
      optionsFor(lines, {
        width: Math.max(120, target.clientWidth),
        logarithmic: logarithmic === true,
        label: (value) => format.number(value),
        count: (value) => format.count(value),
        onRange: (from, to) => handlers.current.onRange?.(from, to),
        onIndex: (index) => handlers.current.onChosen(index),
      }),
      latest.current,
      target,
    );
    plot.current = made;
    const resized = new ResizeObserver(() =>
      made.setSize({ width: Math.max(120, target.clientWidth), height: HEIGHT }),
    );
    resized.observe(target);
    return () => {
      resized.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [shape, colours, tag]);

  useEffect(() => plot.current?.setData(data), [steps, lines]);

  useEffect(() => {
    const made = plot.current;
    // Who points with the mouse has the cursor there already.
    if (made === null || chosen === null || made.cursor.idx === chosen) return;
    const line = lines.find(({ values }) => values[chosen] != null);
    if (line === undefined) return;
    made.setCursor({ left: made.valToPos(steps[chosen]!, "x"), top: made.valToPos(line.values[chosen]!, "y") }, false);
  }, [chosen]);

  return <div ref={holder} class="uplot-holder" aria-hidden="true" />;
}

interface Drawing {
  readonly width: number;
  readonly logarithmic: boolean;
  readonly label: (value: number) => string;
  readonly count: (value: number) => string;
  readonly onRange: (from: number, to: number) => void;
  readonly onIndex: (index: number | null) => void;
}

function optionsFor(
  lines: readonly Line[],
  { width, logarithmic, label, count, onRange, onIndex }: Drawing,
): uPlot.Options {
  const [text, grid] = [colour("muted"), colour("grid")];
  const axis: uPlot.Axis = {
    stroke: text,
    grid: { stroke: grid, width: 1 },
    ticks: { stroke: grid, width: 1 },
    font: "12px system-ui, sans-serif",
  };
  const series: uPlot.Series[] = [{}];
  const bands: uPlot.Band[] = [];
  for (const line of lines) {
    const stroke = colour(line.colour);
    series.push({
      label: line.label,
      stroke,
      width: 1.75,
      spanGaps: true,
      points: { show: line.sparse === true, size: 5, fill: stroke },
    });
    if (line.band === undefined) continue;
    const edge: uPlot.Series = { class: EDGE, stroke: "transparent", points: { show: false }, spanGaps: true };
    bands.push({ series: [series.length, series.length + 1], fill: `${stroke}33` });
    series.push({ ...edge }, { ...edge });
  }
  return {
    ...{ width, height: HEIGHT, series, bands },
    legend: { show: false },
    padding: [8, 30, 0, 0],
    scales: { x: { time: false }, y: { distr: logarithmic ? 3 : 1, range: (own) => rangeOf(own, logarithmic) } },
    cursor: { drag: { x: true, y: false, setScale: false }, points: { size: 7 }, y: false },
    axes: [
      {
        ...axis,
        size: 34,
        values: (_, splits) => splits.map((value) => (Number.isInteger(value) ? count(value) : "")),
      },
      { ...axis, size: 62, values: (_, splits) => splits.map((value) => (value == null ? "" : label(value))) },
    ],
    hooks: {
      setCursor: [(own) => own.cursor.event != null && onIndex(own.cursor.idx ?? null)],
      setSelect: [
        (own) => {
          const { left, width: chosen } = own.select;
          if (chosen < 8) return;
          onRange(Math.max(0, Math.floor(own.posToVal(left, "x"))), Math.ceil(own.posToVal(left + chosen, "x")));
          own.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
        },
      ],
    },
  };
}

/** What is shown: all of the lines, and of the bands all but the few that would flatten everything else. */
function rangeOf({ series, data }: uPlot, logarithmic: boolean): uPlot.Range.MinMax {
  const values = series.slice(1).flatMap(({ class: kind }, at) => {
    const known = (data[at + 1] as (number | null)[]).filter((value) => value !== null && (!logarithmic || value > 0));
    if (kind !== EDGE) return known as number[];
    const sorted = (known as number[]).sort((a, b) => a - b);
    const cut = Math.ceil(OUTLIERS * sorted.length);
    return sorted.slice(cut, sorted.length - cut);
  });
  if (values.length === 0) return [null, null];
  const [least, most] = values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [
    values[0]!,
    values[0]!,
  ] as [number, number]);
  return logarithmic ? uPlot.rangeLog(least, most, 10, false) : uPlot.rangeNum(least, most, 0.08, true);
}

function aligned(steps: readonly number[], lines: readonly Line[]): uPlot.AlignedData {
  const columns = lines.flatMap(({ values, band }) => (band === undefined ? [values] : [values, band.high, band.low]));
  return [steps, ...columns] as unknown as uPlot.AlignedData;
}

function lastKnown(lines: readonly Line[], count: number): number {
  for (let at = count - 1; at >= 0; at--) if (lines.some(({ values }) => values[at] != null)) return at;
  return -1;
}

/** What a line is at a point; where it has none, what it was last: a run that has ended keeps its last value. */
function atOrBefore({ values }: Line, at: number): number | null {
  return values.slice(0, at + 1).findLast((value) => value !== null) ?? null;
}

/** From point `at` so many known points on, as far as there are any. */
function nextKnown(lines: readonly Line[], count: number, at: number, move: number): number {
  const way = Math.sign(move);
  let found = at;
  for (let left = Math.abs(move), next = at + way; left > 0 && next >= 0 && next < count; next += way) {
    if (!lines.some(({ values }) => values[next] != null)) continue;
    found = next;
    left--;
  }
  return found;
}

function evenly<T>(values: readonly T[], most: number): T[] {
  if (values.length <= most) return [...values];
  return Array.from({ length: most }, (_, at) => values[Math.floor((at * (values.length - 1)) / (most - 1))]!);
}
