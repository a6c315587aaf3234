/** A value from outside for an error's message: its JSON, at most so many characters of it, whatever it is. */
export function shown(value: unknown, most = 80): string {
  if (typeof value === "bigint") return String(value);
  try {
    const text = JSON.stringify(value) ?? String(value);
    return text.length > most ? `${text.slice(0, most)}…` : text;
  } catch {
    return "a value that is nested too deep to be shown";
  }
}
