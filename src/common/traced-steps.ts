/** A rank holds a step's spans until they are written. */
const MOST_TRACED = 32;

/** "3-5" or "1,10-12": the steps, ascending. Throws what is wrong with it. */
export function tracedSteps(given: string): number[] {
  const ranges = given.split(",").map((part) => {
    const [, first, last = first] = /^ *(\d+)(?:-(\d+))? *$/.exec(part) ?? [];
    return [Number(first), Number(last)] as const;
  });
  const wrong = ranges.some(([first, last]) => !(first >= 1 && first <= last && last - first < MOST_TRACED));
  const steps = wrong
    ? []
    : ranges.flatMap(([first, last]) => Array.from({ length: last - first + 1 }, (_, i) => first + i));
  const all = [...new Set(steps)].sort((a, b) => a - b);
  if (all.length === 0 || all.length > MOST_TRACED) {
    throw new Error(`expected at most ${MOST_TRACED} steps, such as 3-5 or 1,10-12`);
  }
  return all;
}
