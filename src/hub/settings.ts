import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import type { HubName } from "../common/hubs.ts";

/** Where repositories come from and where they are kept. */
export interface HubSettings {
  readonly hub: HubName;
  /** Without a slash at its end. */
  readonly endpoint: string;
  /** Sent to the endpoint alone, never to where it redirects. */
  readonly token: string | null;
  /** Holds "models--owner--name" and the like. */
  readonly cacheDir: string;
  /** No request is made: only the cache is used. */
  readonly offline: boolean;
  /** Time for a reply to begin, and for each piece of it to come. */
  readonly timeoutMs: number;
  /** Consecutive requests that may fail without gaining a byte. */
  readonly attempts: number;
  /** Wait before the second attempt; doubled before each later one. */
  readonly backoffMs: number;
  /** Ends every request, pause and fetch. Bytes that have arrived are kept. */
  readonly cancelled?: AbortSignal;
}

type Environment = Readonly<Record<string, string | undefined>>;

const DEFAULT_TIMEOUT_S = 30;
const ATTEMPTS = 5;
const BACKOFF_MS = 500;

/**
 * As huggingface_hub reads them: HF_ENDPOINT, HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, HF_TOKEN, HF_TOKEN_PATH,
 * HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT. ModelScope: MODELSCOPE_DOMAIN, MODELSCOPE_CACHE, MODELSCOPE_API_TOKEN.
 */
export async function hubSettings(hub: HubName, environment: Environment = process.env): Promise<HubSettings> {
  const value = (key: string) => environment[key] || null;
  const home = value("HF_HOME") ?? join(value("XDG_CACHE_HOME") ?? join(homedir(), ".cache"), "huggingface");
  const seconds = Number(value("HF_HUB_DOWNLOAD_TIMEOUT"));
  const common = {
    hub,
    offline: isSwitchedOn(value("HF_HUB_OFFLINE")) || isSwitchedOn(value("TRANSFORMERS_OFFLINE")),
    timeoutMs: (seconds > 0 ? seconds : DEFAULT_TIMEOUT_S) * 1000,
    attempts: ATTEMPTS,
    backoffMs: BACKOFF_MS,
  };
  if (hub === "modelscope") {
    const domain = value("MODELSCOPE_DOMAIN") ?? "www.modelscope.cn";
    return {
      ...common,
      endpoint: withoutSlash(domain.includes("://") ? domain : `https://${domain}`),
      token: value("MODELSCOPE_API_TOKEN"),
      // Its own program keeps other folders there, in another layout.
      cacheDir: join(expanded(value("MODELSCOPE_CACHE") ?? join(homedir(), ".cache", "modelscope")), "pipelora"),
    };
  }
  return {
    ...common,
    endpoint: withoutSlash(value("HF_ENDPOINT") ?? "https://huggingface.co"),
    token:
      value("HF_TOKEN") ??
      value("HUGGING_FACE_HUB_TOKEN") ??
      (await tokenOf(expanded(value("HF_TOKEN_PATH") ?? join(home, "token")))),
    cacheDir: expanded(value("HF_HUB_CACHE") ?? value("HUGGINGFACE_HUB_CACHE") ?? join(home, "hub")),
  };
}

function isSwitchedOn(text: string | null): boolean {
  return text !== null && /^(1|on|yes|true)$/i.test(text.trim());
}

function withoutSlash(url: string): string {
  return url.replace(/\/+$/, "");
}

function expanded(path: string): string {
  return path === "~" || path.startsWith("~/") ? join(homedir(), path.slice(1)) : path;
}

/** What `hf auth login` has written; null where nobody has logged in. */
async function tokenOf(path: string): Promise<string | null> {
  const text = await readFile(path, "utf8").catch(() => "");
  return text.replace(/[\r\n]/g, "").trim() || null;
}
