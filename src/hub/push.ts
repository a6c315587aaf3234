import { pathToFileURL } from "node:url";
import { PipeloraError } from "../common/errors.ts";
import { eitherOf, PassingFailure, passes, pauseBefore, reasonOf, refusal, retryAfter, send } from "./requests.ts";
import type { HubSettings } from "./settings.ts";

export interface PushedFile {
  /** Inside the repository, with slashes. */
  readonly path: string;
  /** A file of this machine, or the text itself. */
  readonly content: { readonly file: string; readonly bytes: number } | { readonly text: string };
}

export interface Push {
  /** "owner/name" */
  readonly name: string;
  /** null: main. */
  readonly branch: string | null;
  readonly private: boolean;
  readonly files: readonly PushedFile[];
  readonly title: string;
}

export interface Pushed {
  readonly url: string;
  readonly commit: string;
}

/** Bytes a second below which an upload counts as stuck. */
const SLOWEST = 50_000;
const EXISTS = 409;

/**
 * Makes the repository of a model where there is none, and commits the files to it through @huggingface/hub, large ones by LFS. Nothing is
 * seen of a push that fails before its commit. Errors: PL_HUB_DENIED (no token, or one that may not write), PL_HUB_NOT_FOUND,
 * PL_HUB_UNREACHABLE, PL_HUB_OFFLINE.
 */
export async function pushFiles(push: Push, settings: HubSettings): Promise<Pushed> {
  const { token, endpoint, offline } = settings;
  if (offline) {
    throw new PipeloraError("PL_HUB_OFFLINE", `${push.name} can't be pushed: HF_HUB_OFFLINE is set`, {
      hint: "Unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE.",
    });
  }
  if (token === null || !token.startsWith("hf_")) {
    throw new PipeloraError("PL_HUB_DENIED", `pushing to ${push.name} needs an access token, hf_…`, {
      hint: "Run `hf auth login` with a token that may write, or set HF_TOKEN.",
    });
  }
  const { createRepo, uploadFiles } = await import("@huggingface/hub");
  const largest = Math.max(0, ...push.files.map(({ content }) => ("bytes" in content ? content.bytes : 0)));
  const hub = { hubUrl: endpoint, accessToken: token, fetch: writingFetch(push.name, settings, largest) };
  const repo = { type: "model" as const, name: push.name };
  try {
    await createRepo({ repo, visibility: push.private ? "private" : "public", ...hub });
  } catch (error) {
    if ((error as { statusCode?: number }).statusCode !== EXISTS) throw known(error, push.name, settings);
  }
  try {
    const output = await uploadFiles({
      repo,
      branch: push.branch ?? "main",
      commitTitle: push.title,
      files: push.files.map(({ path, content }) => ({
        path,
        content: "file" in content ? pathToFileURL(content.file) : new Blob([content.text]),
      })),
      ...hub,
    });
    return { url: `${endpoint}/${push.name}`, commit: output!.commit.oid };
  } catch (error) {
    throw known(error, push.name, settings);
  }
}

/** Requests with retries, deadlines and our errors; a file's time goes by its size. */
function writingFetch(name: string, settings: HubSettings, largest: number): typeof fetch {
  const uploadMs = Math.ceil(settings.timeoutMs + (largest / SLOWEST) * 1000);
  return async (url, init) => {
    for (let attempt = 1; ; attempt++) {
      const timeout = AbortSignal.timeout(init?.method === "PUT" ? uploadMs : settings.timeoutMs);
      let response: Response;
      try {
        response = await send(String(url), { ...init, signal: eitherOf(timeout, settings) });
        if (!passes(response.status)) {
          if (response.ok || response.status === EXISTS) return response;
          await response.body?.cancel().catch(() => {});
          throw response.status === 401 || response.status === 403
            ? denied(name, response.status)
            : refusal(response, settings, name);
        }
        await response.body?.cancel().catch(() => {});
      } catch (cause) {
        if (cause instanceof PipeloraError) throw cause;
        await pauseBefore(
          attempt + 1,
          new PassingFailure(reasonOf(cause, timeout, settings), null, cause),
          settings,
          name,
        );
        continue;
      }
      await pauseBefore(
        attempt + 1,
        new PassingFailure(`status ${response.status}`, retryAfter(response)),
        settings,
        name,
      );
    }
  };
}

function denied(name: string, status: number): PipeloraError {
  return new PipeloraError("PL_HUB_DENIED", `${name}: the token of $HF_TOKEN may not write there (status ${status})`, {
    hint: "Make a token with the right to write, of an account that owns the name.",
  });
}

function known(error: unknown, name: string, { endpoint }: HubSettings): unknown {
  if (error instanceof PipeloraError) return error;
  return new PipeloraError("PL_HUB_UNREACHABLE", `${name}: ${endpoint} took no push: ${(error as Error).message}`, {
    hint: "Nothing was committed: try again.",
    cause: error,
  });
}
