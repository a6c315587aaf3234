import { readFile } from "node:fs/promises";
import type { Registry } from "prom-client";
import { isLoopback } from "../../common/address.ts";
import { PipeloraError } from "../../common/errors.ts";
import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { createApp, listenOn } from "../../serve/app.ts";
import { metricsPage } from "../../serve/metrics.ts";
import { openaiApi } from "../../serve/openai/api.ts";
import type { Service } from "../../serve/service.ts";

export type HttpSettings = Pick<Config, "api_key" | "api_key_file" | "http_tls_cert" | "http_tls_key">;

export interface HttpApi {
  readonly url: string;
  /** Takes no more requests; ends those under way once they are answered, or after so long. */
  close(graceMs: number): Promise<void>;
}

export interface HttpApiOptions {
  readonly address: string;
  readonly service: Service;
  /** Whether requests are answered now. */
  readonly ready: () => boolean;
  readonly log: Logger;
  /** What /metrics tells beside the service's own. */
  readonly registry: Registry;
}

/** The API of a service on an address. Errors: PL_PORT_UNAVAILABLE, PL_TLS_INVALID, PL_CONFIG_INVALID for a file without a key. */
export async function openHttpApi(
  settings: HttpSettings,
  { address, service, ready, log, registry }: HttpApiOptions,
): Promise<HttpApi> {
  const apiKey = settings.api_key ?? (settings.api_key_file === null ? null : await keyFrom(settings.api_key_file));
  const { http_tls_cert: cert, http_tls_key: key } = settings;
  const app = await createApp({
    apiKey,
    tls: cert === null || key === null ? null : { cert, key },
    onFailure: (what, error) => log.error({ error }, `${what} failed: ${(error as Error).message}`),
    ready,
  });
  await app.register(openaiApi(service), { prefix: "/v1" });
  await app.register(metricsPage(registry, service.scheduler));
  if (apiKey === null && !isLoopback(address)) {
    log.warn(`the API on ${address} asks for no key: whoever reaches it may use it; give --api-key-file`);
  }
  const url = await listenOn(app, address);
  return {
    url,
    close: async (graceMs) => {
      const late = setTimeout(() => {
        service.scheduler()?.fail(new PipeloraError("PL_INTERRUPTED", "the server is shutting down"));
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
