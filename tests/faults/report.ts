import type { Result } from "./run-case.ts";
import { FAULTS, MOMENTS, NOT_DRAWN } from "./space.ts";

const SAME = "same bits";
const RESTARTED = "same bits, after a restart of its own";
const CODED = "coded end; same bits when started again";
const MISSED = "same bits; it came too late";
const WRONG = "wrong";
const OUTCOMES = [SAME, RESTARTED, CODED, MISSED, WRONG] as const;
type Outcome = (typeof OUTCOMES)[number];

export function outcomeOf({ wrong, struck, ends, restarts }: Result): Outcome {
  if (wrong.length > 0) return WRONG;
  if (struck === null) return MISSED;
  if (ends.length > 0) return CODED;
  return restarts > 0 ? RESTARTED : SAME;
}

export function describe(result: Result): string {
  const { drawn, struck, ends, seconds, wrong, lingered } = result;
  const what = `${drawn.fault} × ${drawn.moment} × ${drawn.place} × ${drawn.kind}`;
  const coded = ends.length === 0 ? "" : ` (${ends.join(", ")})`;
  const line = `${drawn.number}: ${what}: ${struck ?? "missed"}: ${outcomeOf(result)}${coded}, ${seconds.toFixed(1)} s${lingered > 3 ? `, of which ${lingered.toFixed(1)} s until the last process had left` : ""}`;
  return [line, ...wrong.map((text) => `   ${text}`)].join("\n");
}

/** Outcomes by fault and by moment. */
export function summary(results: readonly Result[]): string {
  return [
    table("fault", FAULTS, results, ({ drawn }) => drawn.fault),
    table("moment", MOMENTS, results, ({ drawn }) => drawn.moment),
    `Not drawn:\n${NOT_DRAWN.map(
      ({ why, ...values }) =>
        `- ${Object.values(values)
          .map((list) => list.join("|"))
          .join(" × ")}: ${why}`,
    ).join("\n")}`,
  ].join("\n\n");
}

function table<T extends string>(
  title: string,
  rows: readonly T[],
  results: readonly Result[],
  rowOf: (result: Result) => T,
): string {
  const line = (name: string, own: readonly Result[]) =>
    `| ${[name, own.length, ...OUTCOMES.map((outcome) => own.filter((result) => outcomeOf(result) === outcome).length)].join(" | ")} |`;
  const lines = rows.map((row) => [row, results.filter((result) => rowOf(result) === row)] as const);
  return [
    `| ${[title, "runs", ...OUTCOMES].join(" | ")} |`,
    `|${"---|".repeat(OUTCOMES.length + 2)}`,
    ...lines.filter(([, own]) => own.length > 0).map(([row, own]) => line(row, own)),
    line("all", results),
  ].join("\n");
}
