/** ok: nothing to do. warn: training works, with a limit. fail: training does not work here. */
export type Verdict = "ok" | "warn" | "fail";

/** One line of `coordinator doctor`. */
export interface Finding {
  /** What was looked at: "driver". */
  readonly name: string;
  readonly verdict: Verdict;
  /** What was found there. */
  readonly found: string;
  /** What to do about a warning or failure; null: nothing. */
  readonly advice: string | null;
}

export function ok(name: string, found: string): Finding {
  return { name, verdict: "ok", found, advice: null };
}

export function warn(name: string, found: string, advice: string): Finding {
  return { name, verdict: "warn", found, advice };
}

export function fail(name: string, found: string, advice: string): Finding {
  return { name, verdict: "fail", found, advice };
}

/** A line a finding: what was checked, the verdict, what was found, and what to do. */
export function formatFindings(findings: readonly Finding[]): string {
  const rows = findings.map(({ name, verdict, found, advice }) => {
    const text = advice === null ? found : `${found}. ${advice}`;
    return `${name.padEnd(10)} ${verdict.padEnd(4)}  ${text}`;
  });
  return `${rows.join("\n")}\n`;
}
