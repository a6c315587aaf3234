import { setTimeout as delay } from "node:timers/promises";
import { PipeloraError } from "../common/errors.ts";
import type { HubSettings } from "./settings.ts";

/** What a request is for, as messages name it: "Qwen/Qwen3-8B", "Qwen/Qwen3-8B: config.json". */
export type Subject = string;

const MAX_RETRY_AFTER_MS = 300_000;
/** HTTP statuses after which another attempt may succeed: too many requests, and errors of a server or of a gateway before it. */
const PASSING = new Set([408, 425, 429, 500, 502, 503, 504]);

/** Whether a later reply may differ from one with this status. */
export const passes = (status: number): boolean => PASSING.has(status);

/** Why an attempt failed, if another may succeed. */
export class PassingFailure extends Error {
  /** How long the server asks to wait. */
  readonly retryAfterMs: number | null;

  constructor(message: string, retryAfterMs: number | null = null, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.retryAfterMs = retryAfterMs;
  }
}

/**
 * One request, with the token where it goes to the endpoint itself. `signal` ends it and the reading of its body.
 * Errors: PassingFailure; PL_HUB_DENIED (401, 403), PL_HUB_NOT_FOUND (404, 410), PL_HUB_UNREACHABLE for any other status.
 */
export async function requestOnce(
  url: string,
  settings: HubSettings,
  subject: Subject,
  headers: Readonly<Record<string, string>>,
  signal: AbortSignal,
): Promise<Response> {
  const sent = new Headers(headers);
  sent.set("user-agent", "pipelora");
  // fetch removes the header itself where a reply redirects to another origin.
  const own = new URL(url).origin === new URL(settings.endpoint).origin;
  if (own && settings.token !== null) sent.set("authorization", `Bearer ${settings.token}`);
  let response: Response;
  try {
    response = await send(url, { headers: sent, signal });
  } catch (cause) {
    const own = (cause as Error).cause ?? cause;
    if (own instanceof PipeloraError) throw own;
    throw new PassingFailure(reasonOf(cause, signal, settings), null, cause);
  }
  if (response.ok || response.status === 416) return response;
  await response.body?.cancel().catch(() => {});
  if (PASSING.has(response.status)) throw new PassingFailure(`status ${response.status}`, retryAfter(response));
  throw refusal(response, settings, subject);
}

/** Loaded only if the environment names a proxy. */
export async function send(url: string, init: RequestInit): Promise<Response> {
  const proxies = Object.entries(process.env).filter(([key]) => /^(https?|all)_proxy$/i.test(key));
  if (proxies.every(([, value]) => value === "")) return fetch(url, init);
  const { proxiedFetch } = await import("./proxies.ts");
  return proxiedFetch(url, init);
}

/** Tries a request until it succeeds; `read` reads its body. Each attempt has the settings' timeout. Error: PL_HUB_UNREACHABLE. */
export async function requestUntilAnswered<T>(
  url: string,
  settings: HubSettings,
  subject: Subject,
  read: (response: Response) => Promise<T>,
  headers: Readonly<Record<string, string>> = {},
): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    settings.cancelled?.throwIfAborted();
    const timeout = AbortSignal.timeout(settings.timeoutMs);
    const signal = eitherOf(timeout, settings);
    try {
      const response = await requestOnce(url, settings, subject, headers, signal);
      try {
        return await read(response);
      } catch (cause) {
        if (cause instanceof PipeloraError) throw cause;
        throw new PassingFailure(reasonOf(cause, timeout, settings), null, cause);
      }
    } catch (failure) {
      if (!(failure instanceof PassingFailure)) throw failure;
      await pauseBefore(attempt + 1, failure, settings, subject);
    }
  }
}

/** Waits before the given attempt (the second is 2). Errors: PL_HUB_UNREACHABLE after the last one; the reason of `cancelled`. */
export async function pauseBefore(
  attempt: number,
  failure: PassingFailure,
  settings: HubSettings,
  subject: Subject,
): Promise<void> {
  const { cancelled } = settings;
  cancelled?.throwIfAborted();
  if (attempt > settings.attempts) {
    throw new PipeloraError(
      "PL_HUB_UNREACHABLE",
      `${subject}: ${settings.endpoint} gave no answer in ${settings.attempts} attempts: ${failure.message}`,
      {
        hint: "Check the network and $HF_ENDPOINT; what has come is kept, and the next try goes on from there. With HF_HUB_OFFLINE=1 the cache alone is used.",
        cause: failure,
      },
    );
  }
  const own = settings.backoffMs * 2 ** (attempt - 2);
  await delay(Math.min(MAX_RETRY_AFTER_MS, failure.retryAfterMs ?? own), undefined, { signal: cancelled }).catch(
    () => {},
  );
  cancelled?.throwIfAborted();
}

/** Aborted when `own` is, or when the settings' signal is. */
export function eitherOf(own: AbortSignal, { cancelled }: HubSettings): AbortSignal {
  return cancelled === undefined ? own : AbortSignal.any([own, cancelled]);
}

/** What went wrong below HTTP, in words. */
export function reasonOf(cause: unknown, signal: AbortSignal, settings: HubSettings): string {
  if (signal.aborted) return `nothing came for ${settings.timeoutMs / 1000} s`;
  const inner = (cause as Error).cause;
  return inner instanceof Error && inner.message !== "" ? inner.message : (cause as Error).message;
}

/** Seconds, or a date. */
export function retryAfter(response: Response): number | null {
  const text = response.headers.get("retry-after");
  if (text === null) return null;
  const ms = /^\d+(\.\d+)?$/.test(text.trim()) ? Number(text) * 1000 : Date.parse(text) - Date.now();
  return Number.isNaN(ms) ? null : Math.max(0, ms);
}

export function refusal(response: Response, { endpoint, token, hub }: HubSettings, subject: Subject): PipeloraError {
  const { status } = response;
  const code = response.headers.get("x-error-code") ?? "";
  const variable = hub === "huggingface" ? "$HF_TOKEN" : "$MODELSCOPE_API_TOKEN";
  if (code === "RevisionNotFound") {
    return new PipeloraError("PL_HUB_NOT_FOUND", `${subject}: ${endpoint} has no such revision`, {
      hint: "Name a branch, a tag or a commit of the repository after the @.",
    });
  }
  if (code === "GatedRepo" || status === 403) {
    return new PipeloraError("PL_HUB_DENIED", `${subject}: ${endpoint} refuses access (status ${status})`, {
      hint:
        token === null
          ? `Its owner asks for consent: accept the conditions on its page, and put your token into ${variable}.`
          : `Accept the conditions on its page with the account of ${variable}, and give the token the right to read it.`,
    });
  }
  if (status === 401) {
    return new PipeloraError("PL_HUB_DENIED", `${subject}: ${endpoint} wants to know who asks (status 401)`, {
      hint:
        token === null
          ? `Check the name: a repository that does not exist is answered so too. For a private one put your token into ${variable}.`
          : `Check the name, and that the token of ${variable} is valid and may read it.`,
    });
  }
  if (status === 404 || status === 410) {
    return new PipeloraError("PL_HUB_NOT_FOUND", `${subject}: ${endpoint} has none of this name (status ${status})`, {
      hint: "Check owner, name and revision. A folder of your own is named by its path: it was not found either.",
    });
  }
  return new PipeloraError("PL_HUB_UNREACHABLE", `${subject}: ${endpoint} answered with status ${status}`, {
    hint: "Check $HF_ENDPOINT: this is no answer of a hub.",
  });
}
