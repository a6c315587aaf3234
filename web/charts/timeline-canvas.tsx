import { useEffect, useRef, useState } from "preact/hooks";
import { SPAN_KINDS, type Span, type SpanKind, type Timeline } from "../../src/serve/page/wire.ts";
import { colour, useColours } from "../theme.ts";

/** What a rank computes: the rest of its row is idle. */
export const COMPUTE: readonly SpanKind[] = ["update", "forward", "backward", "reduce", "norm"];

export const kindOf = (span: Span): SpanKind => SPAN_KINDS[span[0]]!;

/** The part of a step that is shown, in milliseconds. */
export interface Window {
  readonly begin: number;
  readonly end: number;
}

export interface Chosen {
  readonly row: number;
  readonly span: Span;
}

const ROW = 26;
const AXIS = 22;
const LEFT = 40;
const FONT = "12px system-ui, sans-serif";

interface TimelineCanvasProps {
  readonly timeline: Timeline;
  readonly window: Window;
  readonly chosen: Chosen | null;
  readonly onPoint: (chosen: Chosen | null) => void;
  readonly onWindow: (window: Window) => void;
}

/** A row a rank: work in full height, waits in grey, what is sent and received in two thin lines below. */
export function TimelineCanvas({ timeline, window: shown, chosen, onPoint, onWindow }: TimelineCanvasProps) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const [width, setWidth] = useState(0);
  const colours = useColours();
  const height = timeline.ranks.length * ROW + AXIS;
  const dragged = useRef<{ x: number; window: Window } | null>(null);

  useEffect(() => {
    const target = canvas.current!.parentElement!;
    const resized = new ResizeObserver(() => setWidth(target.clientWidth));
    resized.observe(target);
    setWidth(target.clientWidth);
    return () => resized.disconnect();
  }, []);

  useEffect(() => {
    const own = canvas.current!;
    const ratio = globalThis.devicePixelRatio || 1;
    own.width = Math.max(1, Math.round(width * ratio));
    own.height = Math.round(height * ratio);
    own.style.height = `${height}px`;
    const pen = own.getContext("2d")!;
    pen.scale(ratio, ratio);
    draw(pen, { timeline, shown, chosen, width, height });
  }, [timeline, shown, chosen, width, height, colours]);

  const scale = (width - LEFT) / (shown.end - shown.begin);
  const onMove = (event: PointerEvent) => {
    const { left, top } = canvas.current!.getBoundingClientRect();
    const [x, y] = [event.clientX - left, event.clientY - top];
    if (dragged.current !== null) {
      const by = (dragged.current.x - x) / scale;
      onWindow(moved(dragged.current.window, by, timeline.ms));
      return;
    }
    const row = Math.floor((y - AXIS) / ROW);
    onPoint(under(timeline, row, shown.begin + (x - LEFT) / scale, (y - AXIS) % ROW, 3 / scale));
  };
  return (
    <canvas
      ref={canvas}
      class="timeline"
      onPointerMove={onMove}
      onPointerLeave={() => {
        dragged.current = null;
        onPoint(null);
      }}
      onPointerDown={(event) => {
        const { left } = canvas.current!.getBoundingClientRect();
        dragged.current = { x: event.clientX - left, window: shown };
      }}
      onPointerUp={() => {
        dragged.current = null;
      }}
    />
  );
}

/** Shifted, inside the step. */
export function moved({ begin, end }: Window, by: number, ms: number): Window {
  const shift = Math.max(-begin, Math.min(by, ms - end));
  return { begin: begin + shift, end: end + shift };
}

/** The span at a time of a row; of several the one that is drawn last. `reach`: narrower ones are met from so far. */
function under({ ranks }: Timeline, row: number, at: number, y: number, reach: number): Chosen | null {
  const rank = ranks[row];
  if (rank === undefined) return null;
  const wanted = y < 17 ? [...COMPUTE, "wait"] : y < 21 ? ["send"] : ["receive"];
  const hit = (span: Span, slack: number) =>
    wanted.includes(kindOf(span)) && at >= span[1] - slack && at <= span[1] + span[2] + slack;
  const span =
    rank.spans.findLast((one) => hit(one, 0) && kindOf(one) !== "wait") ??
    rank.spans.findLast((one) => hit(one, reach));
  return span === undefined ? null : { row, span };
}

interface Picture {
  readonly timeline: Timeline;
  readonly shown: Window;
  readonly chosen: Chosen | null;
  readonly width: number;
  readonly height: number;
}

function draw(pen: CanvasRenderingContext2D, { timeline, shown, chosen, width, height }: Picture): void {
  const scale = (width - LEFT) / (shown.end - shown.begin);
  const x = (ms: number) => LEFT + (ms - shown.begin) * scale;
  const fills = new Map(SPAN_KINDS.map((kind) => [kind, colour(`span-${kind}`)]));
  const [text, grid, rail] = [colour("muted"), colour("grid"), colour("rail")];
  pen.clearRect(0, 0, width, height);
  pen.font = FONT;
  pen.textBaseline = "middle";
  for (const ms of ticks(shown)) {
    const at = x(ms);
    pen.fillStyle = grid;
    pen.fillRect(at, AXIS - 4, 1, height);
    pen.fillStyle = text;
    pen.textAlign = at > width - 40 ? "right" : at < LEFT + 20 ? "left" : "center";
    pen.fillText(`${Number(ms.toPrecision(6))} ms`, at, 8);
  }
  for (const [row, { rank, spans }] of timeline.ranks.entries()) {
    const top = AXIS + row * ROW;
    pen.fillStyle = text;
    pen.textAlign = "right";
    pen.fillText(String(rank), LEFT - 8, top + 9);
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, top, width - LEFT, ROW);
    pen.clip();
    pen.fillStyle = rail;
    pen.fillRect(x(0), top + 1, timeline.ms * scale, 16);
    for (const span of [...spans].sort((a, b) => depth(a) - depth(b))) {
      const kind = kindOf(span);
      const [begin, length] = [x(span[1]), Math.max(1, span[2] * scale)];
      if (begin > width || begin + length < LEFT) continue;
      pen.fillStyle = fills.get(kind)!;
      if (kind === "send") pen.fillRect(begin, top + 18, length, 3);
      else if (kind === "receive") pen.fillRect(begin, top + 21.5, length, 3);
      // A line of the row's own colour parts neighbours of one kind.
      else pen.fillRect(begin, top + 1, length > 3 ? length - 0.75 : length, 16);
    }
    if (chosen?.row === row) {
      const kind = kindOf(chosen.span);
      pen.strokeStyle = colour("text");
      pen.lineWidth = 2;
      const [y, tall] = kind === "send" ? [17, 5] : kind === "receive" ? [20.5, 5] : [1, 16];
      pen.strokeRect(x(chosen.span[1]), top + y, Math.max(3, chosen.span[2] * scale), tall);
    }
    pen.restore();
  }
}

/** Waits lie below work. */
const depth = (span: Span) => (kindOf(span) === "wait" ? 0 : 1);

/** Four to ten round times. */
function ticks({ begin, end }: Window): number[] {
  const rough = (end - begin) / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const every = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough)!;
  const first = Math.ceil(begin / every);
  return Array.from({ length: Math.floor(end / every) - first + 1 }, (_, at) => (first + at) * every);
}
