import { stat } from "node:fs/promises";
import { join } from "node:path";
import { PipeloraError } from "../common/errors.ts";
import { freeDisk } from "../common/machine.ts";
import { RepoCache } from "./cache.ts";
import { downloadBlob, incompleteOf } from "./download.ts";
import type { ProgressMaker } from "./progress.ts";
import type { RepoReference } from "./reference.ts";
import { type Listing, listRepository, type RemoteFile } from "./remote.ts";
import { eitherOf } from "./requests.ts";
import type { HubSettings } from "./settings.ts";

/** Files that are fetched beside each other. */
const AT_ONCE = 4;

export interface SnapshotOptions {
  readonly settings: HubSettings;
  readonly progress: ProgressMaker;
  readonly warn: (text: string) => void;
}

/** A repository at one commit: its list of files is known, and files are fetched into the cache on demand. */
export class Snapshot {
  readonly reference: RepoReference;
  readonly commit: string;
  /** Files there are, with slashes; offline those of the cache. */
  readonly paths: readonly string[];
  readonly #cache: RepoCache;
  /** null: without the hub. */
  readonly #listing: Listing | null;
  readonly #options: SnapshotOptions;

  private constructor(
    reference: RepoReference,
    commit: string,
    paths: readonly string[],
    cache: RepoCache,
    listing: Listing | null,
    options: SnapshotOptions,
  ) {
    this.reference = reference;
    this.commit = commit;
    this.paths = paths;
    this.#cache = cache;
    this.#listing = listing;
    this.#options = options;
  }

  /**
   * Asks the hub what the repository holds. Offline, or where the hub does not answer (which is logged), the cache is asked. Errors: those
   * of listRepository; PL_HUB_OFFLINE where the cache does not know it.
   */
  static async open(reference: RepoReference, options: SnapshotOptions): Promise<Snapshot> {
    const { settings, warn } = options;
    const cache = new RepoCache(settings.cacheDir, reference);
    const revision = reference.revision ?? (settings.hub === "huggingface" ? "main" : "master");
    const cached = async () => {
      const commit = await cache.commitOf(revision);
      if (commit === null) return null;
      return new Snapshot(reference, commit, await cache.paths(commit), cache, null, options);
    };
    if (settings.offline) {
      const found = await cached();
      if (found !== null) return found;
      throw offline(`${reference.name}@${revision} is not in ${settings.cacheDir}`);
    }
    let listing: Listing;
    try {
      listing = await listRepository(reference, settings);
    } catch (error) {
      if (!(error instanceof PipeloraError) || error.code !== "PL_HUB_UNREACHABLE") throw error;
      const found = await cached();
      if (found === null) throw error;
      warn(`${error.message}; the cache's ${found.commit.slice(0, 12)} is used`);
      return found;
    }
    await cache.writeRef(revision, listing.commit);
    const paths = listing.files.map(({ path }) => path);
    return new Snapshot(reference, listing.commit, paths, cache, listing, options);
  }

  /** Where the files lie once they are fetched. */
  get dir(): string {
    return this.#cache.snapshot(this.commit);
  }

  pathOf(path: string): string {
    return join(this.dir, path);
  }

  /** Fetches the files given that are not here yet. Errors: those of downloadBlob; PL_HUB_OFFLINE, PL_HUB_NOT_FOUND. */
  async fetch(paths: readonly string[]): Promise<void> {
    const missing: string[] = [];
    for (const path of paths) {
      const size = await this.#cache.sizeOf(this.commit, path);
      const expected = this.#listing?.files.find((file) => file.path === path)?.size ?? size;
      if (size === null || size !== expected) missing.push(path);
    }
    if (missing.length === 0) return;
    if (this.#listing === null) {
      throw offline(`${this.reference.name} (${this.commit.slice(0, 12)}): the cache lacks ${missing.join(", ")}`);
    }
    const files = missing.map((path) => {
      const file = this.#listing!.files.find((candidate) => candidate.path === path);
      if (file !== undefined) return file;
      throw new PipeloraError("PL_HUB_NOT_FOUND", `${this.reference.name} has no ${path}`, {
        hint: "The repository is incomplete: tell its owner, or name another revision.",
      });
    });
    await this.#download(files, this.#listing);
  }

  async #download(files: readonly RemoteFile[], listing: Listing): Promise<void> {
    const { settings, progress } = this.#options;
    const total = files.reduce((sum, { size }) => sum + size, 0);
    let before = 0;
    for (const { hash, size } of files) before += Math.min(size, await leftOf(this.#cache.blob(hash.hex)));
    const free = await freeDisk(settings.cacheDir);
    if (free < total - before) {
      throw new PipeloraError(
        "PL_OUTPUT_UNWRITABLE",
        `${this.reference.name} takes ${total - before} bytes more, ${settings.cacheDir} has ${free} left`,
        { hint: "Free space, or name another cache with HF_HOME." },
      );
    }
    const names = files.length === 1 ? files[0]!.path : `${files.length} files`;
    const shown = progress(`${this.reference.name} ${names}`, total, before);
    const waiting = [...files];
    const stop = new AbortController();
    const cancelled = eitherOf(stop.signal, settings);
    let failure: unknown = null;
    const one = async () => {
      for (let file = waiting.shift(); file !== undefined && !cancelled.aborted; file = waiting.shift()) {
        await downloadBlob(file, this.#cache.blob(file.hash.hex), {
          url: listing.url(file.path),
          settings,
          subject: `${this.reference.name}: ${file.path}`,
          received: (bytes) => shown.add(bytes),
          cancelled,
        });
        await this.#cache.link(this.commit, file.path, file.hash.hex);
      }
    };
    const orStop = (thrown: unknown) => {
      failure ??= thrown;
      stop.abort();
    };
    // Waits for all before the first failure is thrown: no fetch goes on after an error was reported.
    await Promise.all(Array.from({ length: AT_ONCE }, () => one().catch(orStop)));
    shown.end();
    settings.cancelled?.throwIfAborted();
    if (failure !== null) throw failure;
  }
}

/** Bytes of a blob that are here already. */
async function leftOf(blob: string): Promise<number> {
  for (const path of [blob, incompleteOf(blob)]) {
    const found = await stat(path).catch(() => null);
    if (found !== null) return found.size;
  }
  return 0;
}

function offline(what: string): PipeloraError {
  return new PipeloraError("PL_HUB_OFFLINE", `${what}, and no request is made`, {
    hint: "Fetch it once with `coordinator download`, or take HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE out of the environment.",
  });
}
