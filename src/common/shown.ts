/** An outside value as an error message shows it: its JSON, truncated to a number of characters. */
export function shown(value: unknown, most = 80): string {
  if (typeof value === "bigint") return String(value);
  try {
    const text = JSON.stringify(value) ?? String(value);
    return text.length > most ? `${text.slice(0, most)}…` : text;
  } catch {
    return "a value that is nested too deep to be shown";
  }
}
