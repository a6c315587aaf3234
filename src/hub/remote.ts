import { createHash } from "node:crypto";
import { PipeloraError } from "../common/errors.ts";
import type { RepoReference } from "./reference.ts";
import { requestUntilAnswered } from "./requests.ts";
import type { HubSettings } from "./settings.ts";

/** The hash that a file's bytes must have: SHA-256 for a file in LFS, else the SHA-1 of its git blob. */
export interface ContentHash {
  readonly kind: "sha256" | "git-sha1";
  /** Lower case. */
  readonly hex: string;
}

export interface RemoteFile {
  /** Inside the repository, with slashes. */
  readonly path: string;
  readonly size: number;
  readonly hash: ContentHash;
}

export interface Listing {
  /** 40 hexadecimal digits. */
  readonly commit: string;
  readonly files: readonly RemoteFile[];
  /** Where a file's bytes are asked for. */
  url(path: string): string;
}

/**
 * All files of a repository at a revision. Errors: those of requests.ts; PL_HUB_UNREACHABLE for what is no hub's reply;
 * PL_HUB_DAMAGED for a path that leads out of its folder.
 */
export async function listRepository(reference: RepoReference, settings: HubSettings): Promise<Listing> {
  const listing = await (settings.hub === "huggingface" ? listHuggingFace : listModelScope)(reference, settings);
  for (const { path } of listing.files) {
    if (!isPlainPath(path)) {
      throw new PipeloraError("PL_HUB_DAMAGED", `${reference.name} lists ${JSON.stringify(path)}, which is no path`, {
        hint: "Nothing was fetched: tell the owner of the repository.",
      });
    }
  }
  return listing;
}

/** Relative, of named parts alone. */
function isPlainPath(path: string): boolean {
  const parts = path.split("/");
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is refused.
  return path !== "" && !/[\u0000-\u001f\\]/.test(path) && !parts.some((part) => ["", ".", ".."].includes(part));
}

const COMMIT = /^[0-9a-f]{40}$/;

async function listHuggingFace(reference: RepoReference, settings: HubSettings): Promise<Listing> {
  // Loaded when a name is used: it is large.
  const { datasetInfo, listFiles, modelInfo } = await import("@huggingface/hub");
  const { kind, name, revision } = reference;
  const hub = { hubUrl: settings.endpoint, fetch: asFetch(settings, name) };
  const asked = { name, revision: revision ?? "main", additionalFields: ["sha" as const], ...hub };
  const { sha } = await (kind === "model" ? modelInfo(asked) : datasetInfo(asked));
  if (typeof sha !== "string" || !COMMIT.test(sha)) throw noHub(name, settings, `commit ${JSON.stringify(sha)}`);
  const files: RemoteFile[] = [];
  for await (const entry of listFiles({ repo: { type: kind, name }, revision: sha, recursive: true, ...hub })) {
    if (entry.type !== "file") continue;
    const hash: ContentHash | null =
      entry.lfs !== undefined
        ? { kind: "sha256", hex: entry.lfs.oid }
        : entry.oid === undefined
          ? null
          : { kind: "git-sha1", hex: entry.oid };
    files.push(checkedFile(entry.path, entry.lfs?.size ?? entry.size, hash, name, settings));
  }
  const base = `${settings.endpoint}/${kind === "dataset" ? "datasets/" : ""}${name}/resolve/${sha}`;
  return { commit: sha, files, url: (path) => `${base}/${path.split("/").map(encodeURIComponent).join("/")}` };
}

/** The library's requests with retries, deadlines and our errors; it would send a token to any host, ours goes to the endpoint alone. */
function asFetch(settings: HubSettings, name: string): typeof fetch {
  return async (url, init) => {
    const headers = Object.fromEntries(new Headers(init?.headers));
    return requestUntilAnswered(
      String(url),
      settings,
      name,
      async (response) => new Response(await response.arrayBuffer(), { headers: response.headers }),
      headers,
    );
  };
}

interface ModelScopeFile {
  readonly Path?: unknown;
  readonly Type?: unknown;
  readonly Size?: unknown;
  readonly Sha256?: unknown;
}

/** Entries of a page of a data set's tree; ModelScope's own program asks for no more. */
const PAGE = 200;

/** As ModelScope's public SDK asks: models by repo/files, data sets by pages of repo/tree. Its main branch is "master". */
async function listModelScope(reference: RepoReference, settings: HubSettings): Promise<Listing> {
  const { kind, name } = reference;
  const revision = reference.revision ?? "master";
  const base = `${settings.endpoint}/api/v1/${kind}s/${name}/repo`;
  const query = `Revision=${encodeURIComponent(revision)}&Recursive=true`;
  const entries: ModelScopeFile[] = [];
  if (kind === "model") entries.push(...(await modelScopeFiles(`${base}/files?${query}`, name, settings)));
  else {
    for (let page = 1; ; page++) {
      const found = await modelScopeFiles(
        `${base}/tree?${query}&Root=%2F&PageNumber=${page}&PageSize=${PAGE}`,
        name,
        settings,
      );
      entries.push(...found);
      if (found.length < PAGE) break;
    }
  }
  const files = entries
    .filter(({ Type }) => Type !== "tree")
    .map(({ Path, Size, Sha256 }) =>
      checkedFile(
        String(Path),
        Number(Size),
        typeof Sha256 === "string" ? { kind: "sha256", hex: Sha256.toLowerCase() } : null,
        name,
        settings,
      ),
    );
  // The listing names no commit for the whole, so its contents' hash stands in for one.
  const commit = createHash("sha1");
  for (const { path, hash } of [...files].sort((a, b) => (a.path < b.path ? -1 : 1))) {
    commit.update(`${path}\0${hash.hex}\n`);
  }
  const url = (path: string) => `${base}?Revision=${encodeURIComponent(revision)}&FilePath=${encodeURIComponent(path)}`;
  return { commit: commit.digest("hex"), files, url };
}

async function modelScopeFiles(url: string, name: string, settings: HubSettings): Promise<ModelScopeFile[]> {
  const reply = (await requestUntilAnswered(url, settings, name, (response) => response.json())) as {
    Code?: unknown;
    Message?: unknown;
    Data?: { Files?: unknown } | null;
  };
  if (reply.Code !== undefined && reply.Code !== 200) {
    throw new PipeloraError("PL_HUB_NOT_FOUND", `${name}: ${settings.endpoint} says ${String(reply.Message)}`, {
      hint: "Check owner, name and revision.",
    });
  }
  const files = reply.Data?.Files;
  if (!Array.isArray(files)) throw noHub(name, settings, "no list of files");
  return files as ModelScopeFile[];
}

function checkedFile(
  path: string,
  size: number,
  hash: ContentHash | null,
  name: string,
  settings: HubSettings,
): RemoteFile {
  const digits = hash?.kind === "sha256" ? 64 : 40;
  if (hash === null || !new RegExp(`^[0-9a-f]{${digits}}$`).test(hash.hex)) {
    throw noHub(name, settings, `no hash of ${path}`);
  }
  if (!Number.isSafeInteger(size) || size < 0) throw noHub(name, settings, `no size of ${path}`);
  return { path, size, hash };
}

function noHub(name: string, { endpoint }: HubSettings, what: string): PipeloraError {
  return new PipeloraError("PL_HUB_UNREACHABLE", `${name}: ${endpoint} answered with ${what}`, {
    hint: "Check that the endpoint is a hub, and --hub which kind.",
  });
}
