import type { FastifyPluginAsync } from "fastify";
import { Counter, collectDefaultMetrics, Gauge, type Registry } from "prom-client";
import type { Scheduler } from "../generation/scheduler.ts";

type State = ReturnType<Scheduler["state"]>;

/** Gauges, and counters. */
const GAUGES: readonly (readonly [string, string, (state: State) => number])[] = [
  ["pipelora_requests_running", "Sequences that are being answered.", ({ running }) => running],
  ["pipelora_requests_waiting", "Sequences that wait for a place.", ({ waiting }) => waiting],
  ["pipelora_cache_tokens", "Tokens that the key/value cache has room for.", ({ rows }) => rows],
  ["pipelora_cache_tokens_used", "Tokens of the key/value cache that are taken.", ({ rowsInUse }) => rowsInUse],
];
const COUNTERS: readonly (readonly [string, string, (state: State) => number])[] = [
  ["pipelora_prompt_tokens_total", "Tokens of prompts that were read.", ({ promptTokens }) => promptTokens],
  ["pipelora_generated_tokens_total", "Tokens that were generated.", ({ newTokens }) => newTokens],
  ["pipelora_rounds_total", "Passes of the model over a batch of sequences.", ({ rounds }) => rounds],
];

/** GET /metrics in Prometheus's text form: what `registry` has, the scheduler's state, and this process's. */
export function metricsPage(registry: Registry, scheduler: () => Pick<Scheduler, "state"> | null): FastifyPluginAsync {
  return async (app) => {
    const registers = [registry];
    collectDefaultMetrics({ register: registry });
    for (const [name, help, read] of GAUGES) {
      new Gauge({
        ...{ name, help, registers },
        collect() {
          const state = scheduler()?.state();
          if (state !== undefined) this.set(read(state));
        },
      });
    }
    for (const [name, help, read] of COUNTERS) {
      let before = 0;
      new Counter({
        ...{ name, help, registers },
        collect() {
          const state = scheduler()?.state();
          const now = state === undefined ? before : read(state);
          // A scheduler that begins anew counts from 0.
          this.inc(now >= before ? now - before : now);
          before = now;
        },
      });
    }
    app.get("/metrics", async (_request, reply) => {
      return reply.header("content-type", registry.contentType).send(await registry.metrics());
    });
  };
}
