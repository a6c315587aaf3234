import { createHash, timingSafeEqual } from "node:crypto";
import { readFile } from "node:fs/promises";
import fastify, { type FastifyInstance } from "fastify";
import { joinAddress, splitAddress } from "../common/address.ts";
import { PipeloraError } from "../common/errors.ts";
import { ApiError, toApiError } from "./openai/errors.ts";

declare module "fastify" {
  interface FastifyContextConfig {
    /** Asks for no key. */
    readonly open?: boolean;
  }
}

/** A prompt of a hundred thousand tokens, with room. */
const MOST_BODY_BYTES = 8 << 20;
/** Time for a request to arrive whole, so that a slow client keeps no memory. */
const ARRIVAL_MS = 60_000;
const MOST_CONNECTIONS = 4096;

export interface AppOptions {
  /** null: everybody may ask. */
  readonly apiKey: string | null;
  /** PEM files; null: plaintext. */
  readonly tls: { readonly cert: string; readonly key: string } | null;
  /** Called for requests that failed through the server's fault. */
  readonly onFailure: (what: string, error: unknown) => void;
  /** Whether requests are answered now. */
  readonly ready: () => boolean;
}

/** The HTTP server that takes the plugins: errors in OpenAI's shape, the API key, /health. Error: PL_TLS_INVALID. */
export async function createApp({ apiKey, tls, onFailure, ready }: AppOptions): Promise<FastifyInstance> {
  const https =
    tls === null ? null : { cert: await pem(tls.cert), key: await pem(tls.key), minVersion: "TLSv1.2" as const };
  let app: FastifyInstance;
  try {
    const common = {
      bodyLimit: MOST_BODY_BYTES,
      requestTimeout: ARRIVAL_MS,
      forceCloseConnections: "idle" as const,
    };
    app = (https === null ? fastify(common) : fastify({ ...common, https })) as FastifyInstance;
  } catch (cause) {
    throw new PipeloraError("PL_TLS_INVALID", `${tls!.cert} and ${tls!.key}: ${(cause as Error).message}`, {
      hint: "Give a PEM certificate and the private key that belongs to it.",
      cause,
    });
  }
  app.server.maxConnections = MOST_CONNECTIONS;
  app.setErrorHandler((thrown, request, reply) => {
    const error = toApiError(thrown);
    // A reply with Retry-After is not counted as a failure.
    if (error.status >= 500 && error.retryAfterS === null)
      onFailure(`${request.method} ${request.url}`, error.cause ?? error);
    if (error.retryAfterS !== null) reply.header("retry-after", String(error.retryAfterS));
    if (error.status === 401) reply.header("www-authenticate", "Bearer");
    return reply.code(error.status).send(error.body);
  });
  app.setNotFoundHandler((request, reply) => {
    const error = new ApiError(404, `Unknown request URL: ${request.method} ${request.url}.`, { code: "unknown_url" });
    return reply.code(404).send(error.body);
  });
  app.get("/health", { config: { open: true } }, (_request, reply) =>
    ready() ? reply.send({ status: "ok" }) : reply.code(503).send({ status: "loading" }),
  );
  if (apiKey !== null) {
    const expected = digest(`Bearer ${apiKey}`);
    app.addHook("onRequest", async (request) => {
      if (request.routeOptions.config?.open === true) return;
      if (!timingSafeEqual(digest(request.headers.authorization ?? ""), expected)) {
        throw new ApiError(401, "Incorrect API key provided.", { code: "invalid_api_key" });
      }
    });
  }
  return app;
}

/** Binds; resolves with the URL. Error: PL_PORT_UNAVAILABLE. */
export async function listenOn(app: FastifyInstance, address: string): Promise<string> {
  const { host, port } = splitAddress(address);
  try {
    await app.listen({ host, port });
  } catch (cause) {
    throw new PipeloraError("PL_PORT_UNAVAILABLE", `the API can't listen on ${address}: ${(cause as Error).message}`, {
      hint: "Give --http another HOST:PORT.",
      cause,
    });
  }
  const bound = app.server.address();
  const scheme = "setSecureContext" in app.server ? "https" : "http";
  return `${scheme}://${joinAddress(host, typeof bound === "object" && bound !== null ? bound.port : port)}`;
}

async function pem(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw new PipeloraError("PL_TLS_INVALID", `${path} can't be read: ${(cause as Error).message}`, { cause });
  }
}

function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
