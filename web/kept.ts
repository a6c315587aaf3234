/** What this browser keeps of choices. Where it keeps nothing, nothing is kept: reading then throws. */
export function kept(name: string): string | null {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

export function keep(name: string, value: string): void {
  try {
    localStorage.setItem(name, value);
  } catch {}
}
