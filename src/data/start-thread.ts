import { Worker, type WorkerOptions } from "node:worker_threads";

/** Starts a module as a thread. `module`: its path from this folder, without an extension. */
export function startThread(module: string, options: WorkerOptions): Worker {
  if (!import.meta.url.endsWith(".ts")) return new Worker(new URL(`${module}.js`, import.meta.url), options);
  // Sources that run as they are: a thread does not inherit their loader.
  const script = JSON.stringify(new URL(`${module}.ts`, import.meta.url).href);
  const code = `import("tsx/esm/api").then(({ register }) => (register(), import(${script})));`;
  return new Worker(code, { ...options, eval: true });
}
