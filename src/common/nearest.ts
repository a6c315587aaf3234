/** Levenshtein distance. */
export function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const current = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = previous[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      current.push(Math.min(previous[j]! + 1, current[j - 1]! + 1, substitution));
    }
    previous = current;
  }
  return previous[b.length]!;
}

/** Candidates that may have been meant by a misspelt name: at most a third of the letters differ; nearest first. */
export function nearest(name: string, candidates: readonly string[], most = 3): string[] {
  return (
    candidates
      // A much longer or shorter name is no misspelling, and comparing a very long one could take minutes.
      .filter((candidate) => Math.abs(candidate.length - name.length) <= allowed(name, candidate))
      .map((candidate) => ({ candidate, distance: editDistance(name, candidate) }))
      .filter(({ candidate, distance }) => distance <= allowed(name, candidate))
      .sort((x, y) => x.distance - y.distance)
      .slice(0, most)
      .map(({ candidate }) => candidate)
  );
}

const allowed = (name: string, candidate: string) =>
  Math.max(1, Math.floor(Math.max(name.length, candidate.length) / 3));
