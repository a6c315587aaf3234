import { randomUUID } from "node:crypto";
import { copyFile, link, readdir, readFile, rename, stat, symlink } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { makeFolder } from "../common/files.ts";
import { writeTextAtomically } from "../formats/atomic-file.ts";
import type { RepoReference } from "./reference.ts";

/**
 * One repository in huggingface_hub's cache: blobs/<hash>, refs/<revision> with a commit, snapshots/<commit>/<path> with links to
 * blobs. Python's programs find what is fetched here, and the other way round.
 */
export class RepoCache {
  readonly dir: string;

  constructor(cacheDir: string, { kind, name }: Pick<RepoReference, "kind" | "name">) {
    this.dir = join(cacheDir, `${kind}s--${name.replaceAll("/", "--")}`);
  }

  blob(hash: string): string {
    return join(this.dir, "blobs", hash);
  }

  snapshot(commit: string): string {
    return join(this.dir, "snapshots", commit);
  }

  /** The commit that a revision had when it was last asked for (a commit is its own); null: unknown. */
  async commitOf(revision: string): Promise<string | null> {
    const ref = await readFile(join(this.dir, "refs", revision), "utf8").catch(() => null);
    const commit = ref?.trim() ?? revision;
    return /^[0-9a-f]{40}$/.test(commit) && (await stat(this.snapshot(commit)).catch(() => null)) !== null
      ? commit
      : null;
  }

  async writeRef(revision: string, commit: string): Promise<void> {
    const path = join(this.dir, "refs", revision);
    if (revision === commit || (await readFile(path, "utf8").catch(() => null)) === commit) return;
    await writeTextAtomically(path, commit);
  }

  /** Size of a snapshot's file; null where it is not there, or its blob is gone. */
  async sizeOf(commit: string, path: string): Promise<number | null> {
    return stat(join(this.snapshot(commit), path)).then(
      (found) => (found.isFile() ? found.size : null),
      () => null,
    );
  }

  /** Paths of a snapshot's files, with slashes. */
  async paths(commit: string): Promise<string[]> {
    const root = this.snapshot(commit);
    const entries = await readdir(root, { withFileTypes: true, recursive: true });
    const paths = entries
      .filter((entry) => !entry.isDirectory())
      .map((entry) => relative(root, join(entry.parentPath ?? entry.path, entry.name)).replaceAll("\\", "/"));
    const sizes = await Promise.all(paths.map((path) => this.sizeOf(commit, path)));
    return paths.filter((_, index) => sizes[index] !== null);
  }

  /** Puts a blob into a snapshot. Where the file system has no links, it is copied. */
  async link(commit: string, path: string, hash: string): Promise<void> {
    const pointer = join(this.snapshot(commit), path);
    const blob = this.blob(hash);
    await makeFolder(dirname(pointer));
    const temporary = `${pointer}.${randomUUID()}.tmp`;
    await symlink(relative(dirname(pointer), blob), temporary)
      .catch(() => link(blob, temporary))
      .catch(() => copyFile(blob, temporary));
    await rename(temporary, pointer);
  }
}
