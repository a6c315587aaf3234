import { readFile } from "node:fs/promises";
import type { FastifyInstance } from "fastify";
import type { Registry } from "prom-client";
import { isLoopback } from "../../common/address.ts";
import { PipeloraError } from "../../common/errors.ts";
import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { createApp, listenOn } from "../../serve/app.ts";
import { metricsPage } from "../../serve/metrics.ts";
import { openaiApi } from "../../serve/openai/api.ts";
import { runsPage } from "../../serve/page/page.ts";
import type { RunFolder } from "../../serve/page/run-folder.ts";
import type { Service } from "../../serve/service.ts";

export type HttpSettings = Pick<Config, "api_key" | "api_key_file" | "http_tls_cert" | "http_tls_key">;

export interface HttpApi {
  readonly url: string;
  /** Accepts no more requests, and ends those under way when they are answered or after a time limit. */
  close(graceMs: number): Promise<void>;
}

export interface HttpApiOptions {
  readonly address: string;
  /** Whether requests are answered now. */
  readonly ready: () => boolean;
  readonly log: Logger;
  /** The service under /v1, and its metrics under /metrics; null: neither is served. */
  readonly api: { readonly service: Service; readonly registry: Registry } | null;
  /** The runs that the page shows; null: there is no page. */
  readonly runs: RunFolder | null;
}

/**
 * Serves one address: a service's API, the page, or both. Errors: PL_PORT_UNAVAILABLE, PL_TLS_INVALID, PL_CONFIG_INVALID for a file without
 * a key.
 */
export async function openHttpApi(
  settings: HttpSettings,
  { address, ready, log, api, runs }: HttpApiOptions,
): Promise<HttpApi> {
  const apiKey = settings.api_key ?? (settings.api_key_file === null ? null : await keyFrom(settings.api_key_file));
  const { http_tls_cert: cert, http_tls_key: key } = settings;
  const app = await createApp({
    apiKey,
    tls: cert === null || key === null ? null : { cert, key },
    onFailure: (what, error) => log.error({ error }, `${what} failed: ${(error as Error).message}`),
    ready,
  });
  if (api !== null) await registerApi(app, api);
  if (runs !== null) {
    const trustsMachine = apiKey === null && isLoopback(address);
    await app.register(runsPage({ folder: runs, chat: api !== null, trustsMachine }));
  }
  if (apiKey === null && !isLoopback(address)) {
    log.warn(`${address} asks for no key: whoever reaches it may use it; give --api-key-file`);
  }
  const url = await listenOn(app, address);
  return {
    url,
    close: async (graceMs) => {
      const late = setTimeout(() => {
        api?.service.scheduler()?.fail(new PipeloraError("PL_INTERRUPTED", "the server is shutting down"));
        app.server.closeAllConnections();
      }, graceMs);
      try {
        await app.close();
      } finally {
        clearTimeout(late);
      }
    },
  };
}

async function registerApi(
  app: FastifyInstance,
  { service, registry }: NonNullable<HttpApiOptions["api"]>,
): Promise<void> {
  await app.register(openaiApi(service), { prefix: "/v1" });
  await app.register(metricsPage(registry, service.scheduler));
}

async function keyFrom(path: string): Promise<string> {
  const hint = "Write the key into the file, alone.";
  const text = await readFile(path, "utf8").catch((cause: Error) => {
    throw new PipeloraError("PL_CONFIG_INVALID", `--api-key-file ${path} can't be read: ${cause.message}`, {
      hint,
      cause,
    });
  });
  if (text.trim() === "") throw new PipeloraError("PL_CONFIG_INVALID", `--api-key-file ${path} is empty`, { hint });
  return text.trim();
}
