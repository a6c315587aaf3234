import { useEffect, useState } from "preact/hooks";

export const VIEWS = [
  "curves",
  "placement",
  "timeline",
  "nodes",
  "chat",
  "log",
  "checkpoints",
  "settings",
  "compare",
] as const;
export type View = (typeof VIEWS)[number];

export interface Route {
  /** null: whichever fits what there is. */
  readonly view: View | null;
  readonly run: string | null;
}

/** "#/placement/sweep%2Fa" */
export function routeOf(hash: string): Route {
  const [, view, ...run] = hash.replace(/^#/, "").split("/");
  return {
    view: VIEWS.find((one) => one === view) ?? null,
    run: run.length === 0 ? null : decoded(run.join("/")),
  };
}

export function hashOf(view: View, run: string): string {
  return `#/${view}/${encodeURIComponent(run)}`;
}

export function useRoute(): Route {
  const [hash, setHash] = useState(location.hash);
  useEffect(() => {
    const changed = () => setHash(location.hash);
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return routeOf(hash);
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
