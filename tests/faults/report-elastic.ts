import { ELASTIC_MOMENTS, EVENTS } from "./elastic-drawing.ts";
import type { ElasticResult, Happened } from "./run-elastic.ts";

type Told = Happened & { readonly result: ElasticResult };

const OUTCOMES = ["same bits", "same bits, resumed after a coded end", "same bits; it came too late", "wrong"] as const;

function outcomeOf({ done, result }: Told): (typeof OUTCOMES)[number] {
  if (result.wrong.length > 0) return "wrong";
  if (done === null) return "same bits; it came too late";
  return result.ends.length > 0 ? "same bits, resumed after a coded end" : "same bits";
}

export function describeElastic(result: ElasticResult): string {
  const { drawn, happened, changes, ends, wrong, seconds } = result;
  const events = happened.map(({ drawn: { event, moment }, done }) => `${event} × ${moment} (${done ?? "missed"})`);
  const coded = ends.length === 0 ? "" : `; ${ends.join(", ")}`;
  const took = changes.length === 0 ? "" : `; changes ${changes.map((one) => `${one} s`).join(", ")}`;
  const line = `${drawn.number}: ${drawn.workers} workers, ${drawn.kind}${drawn.grpc ? ", grpc" : ""}: ${events.join("; ")}: ${wrong.length > 0 ? "wrong" : "same bits"}${coded}${took}, ${seconds.toFixed(1)} s`;
  return [line, ...wrong.map((text) => `   ${text}`)].join("\n");
}

/** Outcomes by event and by moment, and what changes took. */
export function summariseElastic(results: readonly ElasticResult[]): string {
  const all = results.flatMap((result) => result.happened.map((one): Told => ({ ...one, result })));
  const changes = results.flatMap((result) => result.changes).sort((a, b) => a - b);
  const at = (share: number) => changes[Math.min(changes.length - 1, Math.floor(share * changes.length))];
  const took =
    changes.length === 0
      ? "no change"
      : `${changes.length} changes; time lost a change: median ${at(0.5)} s, p90 ${at(0.9)} s, most ${at(1)} s`;
  return [
    table("event", EVENTS, all, ({ drawn }) => drawn.event),
    table("moment", ELASTIC_MOMENTS, all, ({ drawn }) => drawn.moment),
    `${results.length} runs, ${all.filter(({ done }) => done !== null).length} events; ${took}`,
  ].join("\n\n");
}

function table<T extends string>(
  title: string,
  rows: readonly T[],
  all: readonly Told[],
  rowOf: (told: Told) => T,
): string {
  const line = (name: string, own: readonly Told[]) =>
    `| ${[name, own.length, ...OUTCOMES.map((outcome) => own.filter((told) => outcomeOf(told) === outcome).length)].join(" | ")} |`;
  return [
    `| ${[title, "drawn", ...OUTCOMES].join(" | ")} |`,
    `|${"---|".repeat(OUTCOMES.length + 2)}`,
    ...rows.map((row) =>
      line(
        row,
        all.filter((told) => rowOf(told) === row),
      ),
    ),
    line("all", all),
  ].join("\n");
}
