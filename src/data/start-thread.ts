import { Worker, type WorkerOptions } from "node:worker_threads";

/** Starts a module as a thread. `module`: its path from this folder, without an extension. */
export function startThread(module: string, options: WorkerOptions): Worker {
  if (!import.meta.url.endsWith(".ts")) return new Worker(new URL(`${module}.js`, import.meta.url), options);
  // The TypeScript sources run through a loader, which a thread does not inherit.
  const script = JSON.stringify(new URL(`${module}.ts`, import.meta.url).href);
  const code = `import("tsx/esm/api").then(({ register }) => (register(), import(${script})));`;
  return new Worker(code, { ...options, eval: true });
}
