import { countOf, type Fields, listOf, numberOf, textOf } from "./fields.ts";
import type { LinkView, Span, Timeline } from "./wire.ts";
import { SPAN_KINDS } from "./wire.ts";

/** Above this number, spans that are too short to be seen are joined. */
const MOST_SPANS = 20_000;
/** Share of a step below which a span is narrower than a pixel. */
const SHORT = 1 / 1500;
/** From 1970 to 2286, in milliseconds: what a time can be. */
const MOST_MS = 1e13;
const SEND = SPAN_KINDS.indexOf("send");

/** The step in last-step.json; null if it is malformed. */
export function timelineOf(lastStep: Fields | null): Timeline | null {
  const step = countOf(lastStep?.["step"]);
  const ms = numberOf(lastStep?.["ms"]);
  const at = numberOf(lastStep?.["began_ms"]);
  const told = listOf(lastStep?.["ranks"]);
  if (step === null || ms === null || !(ms > 0 && ms < MOST_MS) || at === null || told.length === 0) return null;
  const ranks = told.map((rank, index) => ({
    rank: countOf(rank["rank"]) ?? index,
    name: textOf(rank["name"]) ?? "",
    clockErrorMs: numberOf(rank["clock_error_ms"]) ?? 0,
    spans: spansOf(rank["spans"]),
  }));
  const count = ranks.reduce((sum, { spans }) => sum + spans.length, 0);
  const shown = count <= MOST_SPANS ? ranks : ranks.map((rank) => ({ ...rank, spans: joined(rank.spans, ms * SHORT) }));
  return { step, at, ms, ranks: shown };
}

/** Bytes that each rank sent to each other rank in that step, from its spans. */
export function sentBetween(lastStep: Fields | null): Map<string, NonNullable<LinkView["step"]>> {
  const sums = new Map<string, { bytes: number; ms: number; messages: number }>();
  for (const [index, { rank, spans }] of listOf(lastStep?.["ranks"]).entries()) {
    if (!Array.isArray(spans)) continue;
    for (const given of spans) {
      const span = spanOf(given);
      const bytes = Array.isArray(given) ? countOf(given[6]) : null;
      if (span === null || span[0] !== SEND || span[5] < 0 || bytes === null) continue;
      const key = `${countOf(rank) ?? index} ${span[5]}`;
      const sum = sums.get(key) ?? { bytes: 0, ms: 0, messages: 0 };
      sums.set(key, { bytes: sum.bytes + bytes, ms: sum.ms + span[2], messages: sum.messages + 1 });
    }
  }
  return sums;
}

function spansOf(given: unknown): Span[] {
  if (!Array.isArray(given)) return [];
  return given
    .map(spanOf)
    .filter((span) => span !== null)
    .sort((a, b) => a[1] - b[1]);
}

function spanOf(given: unknown): Span | null {
  if (!Array.isArray(given)) return null;
  const kind = SPAN_KINDS.indexOf(given[0]);
  const [begin, length] = [numberOf(given[1]), numberOf(given[2])];
  if (kind < 0 || begin === null || length === null || length < 0 || Math.abs(begin) > MOST_MS) return null;
  const index = (value: unknown) => countOf(value) ?? -1;
  return [kind, begin, length, index(given[3]), index(given[4]), index(given[5])];
}

/** Joins adjacent short spans of one kind. */
function joined(spans: readonly Span[], short: number): Span[] {
  const result: Span[] = [];
  const open = new Map<number, number>();
  for (const span of spans) {
    const [kind, begin, length] = span;
    const place = open.get(kind);
    const before = place === undefined ? undefined : result[place]!;
    if (before !== undefined && begin - (before[1] + before[2]) < short && Math.min(length, before[2]) < short) {
      const end = Math.max(before[1] + before[2], begin + length);
      result[place!] = [kind, before[1], end - before[1], -1, -1, before[5] === span[5] ? span[5] : -1];
    } else {
      open.set(kind, result.length);
      result.push(span);
    }
  }
  return result;
}
