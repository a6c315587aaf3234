/** What ends with a test, the last first: a page is closed before the server that it asks. */
export function lastFirst(test: { after(end: () => Promise<void>): void }): { after(end: () => unknown): void } {
  const ends: (() => unknown)[] = [];
  test.after(async () => {
    for (const end of ends) await end();
  });
  return { after: (end) => void ends.unshift(end) };
}
