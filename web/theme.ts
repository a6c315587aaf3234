import { createContext } from "preact";
import { useContext } from "preact/hooks";
import { keep, kept } from "./kept.ts";

export const THEMES = ["auto", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];

const KEPT = "pipelora.theme";

export function isTheme(name: string | null): name is Theme {
  return THEMES.some((theme) => theme === name);
}

export function firstTheme(): Theme {
  const chosen = kept(KEPT);
  return isTheme(chosen) ? chosen : "auto";
}

/** Sets what the style sheet goes by, and keeps the choice. `dark`: what the system wants. */
export function applyTheme(theme: Theme, dark: boolean): void {
  document.documentElement.dataset["theme"] = theme === "auto" ? (dark ? "dark" : "light") : theme;
  keep(KEPT, theme);
}

/** Changes whenever colours do, so that what is drawn on a canvas is drawn anew. */
export const ColoursContext = createContext("");

export function useColours(): string {
  return useContext(ColoursContext);
}

/** A colour of the style sheet, by its name without "--". */
export function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
