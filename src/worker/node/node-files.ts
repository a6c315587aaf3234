import { randomBytes } from "node:crypto";
import { open, readdir, rename, rm, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { PipeloraError } from "../../common/errors.ts";
import { makeFolder } from "../../common/files.ts";
import { syncFolder } from "../../formats/atomic-file.ts";
import { filesOf, hashFiles, listCheckpoints, setAsideAllBut } from "../../formats/checkpoint-folders.ts";
import type { CheckpointFiles } from "../../rpc/generated/pipelora/v1/CheckpointFiles.ts";
import type { CommitFiles__Output } from "../../rpc/generated/pipelora/v1/CommitFiles.ts";
import type { OutputFolder__Output } from "../../rpc/generated/pipelora/v1/OutputFolder.ts";
import type { OutputFolderState } from "../../rpc/generated/pipelora/v1/OutputFolderState.ts";
import type { ReadFile__Output } from "../../rpc/generated/pipelora/v1/ReadFile.ts";
import type { WriteFile__Output } from "../../rpc/generated/pipelora/v1/WriteFile.ts";

/** CommitFiles' name for the output folder itself. */
const FINAL = "final";

/** Adapters' names that the configuration allows: each is also a folder's name. */
const ADAPTER = /^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$/;

/** This node's output folders (save_on_each_node): one for each adapter of a run. */
export class OutputFolders {
  /** This node's own folder; null: the one at the coordinator's path. */
  readonly #own: string | null;
  readonly #files = new Map<string, NodeFiles>();

  constructor(ownDir: string | null) {
    this.#own = ownDir;
  }

  /** The folder of an adapter; "" is the only adapter of a run. Errors: PL_PROTOCOL_MISMATCH if this can't be an adapter's name. */
  of({ adapter }: { readonly adapter: string }): NodeFiles {
    const known = this.#files.get(adapter);
    if (known !== undefined) return known;
    if (adapter !== "" && !ADAPTER.test(adapter)) {
      throw new PipeloraError("PL_PROTOCOL_MISMATCH", `"${adapter}" is no adapter's name`);
    }
    const files = new NodeFiles(this.#own === null ? null : join(this.#own, adapter));
    this.#files.set(adapter, files);
    return files;
  }
}

/** One of this node's output folders. The coordinator copies its own saves into it (save_on_each_node). */
class NodeFiles {
  /** The same of this adapter. */
  readonly #own: string | null;
  #named: string | null = null;
  /** The save whose files are arriving, and the temporary folder that they go to. */
  #arriving: { readonly save: string; readonly folder: string } | null = null;

  constructor(ownDir: string | null) {
    this.#own = ownDir;
  }

  /** Errors: PL_PROTOCOL_MISMATCH if the coordinator has not named the folder: files must not go to this process's working directory. */
  get #dir(): string {
    if (this.#named !== null) return this.#named;
    throw new PipeloraError("PL_PROTOCOL_MISMATCH", "files came before the folder for them was named");
  }

  /** Makes or marks the folder, or says what is in it. Errors: PL_OUTPUT_UNWRITABLE if it can't be made or marked. */
  async folder({ action, dir, mark, marks }: OutputFolder__Output): Promise<OutputFolderState> {
    this.#named = resolve(this.#own ?? dir);
    return this.#writing(this.#dir, async () => {
      const path = join(this.#dir, plainName(mark));
      if (action === "mark") {
        await makeFolder(this.#dir);
        await this.#dropLeftovers();
        await writeFile(path, "");
      } else if (action === "unmark") {
        await rm(path, { force: true });
      } else if (action === "set_aside") {
        const upTo = Number(/^checkpoint-(\d+)$/.exec(mark)?.[1] ?? -1);
        return { dir: this.#dir, seen: await setAsideAllBut(marks.map(saveName), upTo, this.#dir) };
      }
      const present = new Set(await readdir(this.#dir).catch(() => []));
      return { dir: this.#dir, seen: marks.filter((name) => present.has(name)) };
    });
  }

  /** Appends to a file of a save. Errors: PL_OUTPUT_UNWRITABLE; the whole save is then deleted. */
  async write({ save, name, offset, data }: WriteFile__Output): Promise<void> {
    await this.#writing(join(this.#dir, save), async () => {
      const path = join(await this.#arrivalFolder(save), plainName(name));
      const file = await open(path, offset === 0 ? "wx" : "r+");
      try {
        await file.write(data, 0, data.length, offset);
        await file.sync();
      } finally {
        await file.close();
      }
    });
  }

  /** Reads the files back from the disk, compares hashes, and gives the files their names. Errors: PL_OUTPUT_UNWRITABLE. */
  async commit({ save, files, dropped }: CommitFiles__Output): Promise<void> {
    await this.#writing(join(this.#dir, save), async () => {
      const folder = await this.#arrivalFolder(save);
      const found = await hashFiles(
        folder,
        files.map(({ name }) => plainName(name)),
      );
      const bad = found.find(({ sha256 }, index) => sha256 !== files[index]!.sha256);
      if (bad !== undefined) throw new Error(`${bad.name} hashes to ${bad.sha256}, not to what was sent`);
      if (save === FINAL) {
        for (const { name } of files) await rename(join(folder, name), join(this.#dir, name));
        await rm(folder, { recursive: true });
      } else {
        await syncFolder(folder);
        await rm(join(this.#dir, save), { recursive: true, force: true });
        await rename(folder, join(this.#dir, save));
      }
      await syncFolder(this.#dir);
      this.#arriving = null;
      for (const name of dropped) await rm(join(this.#dir, saveName(name)), { recursive: true, force: true });
    });
  }

  /** The folder's checkpoints, oldest first, with the sizes of their files. */
  async list(): Promise<CheckpointFiles[]> {
    const folders = await listCheckpoints(this.#dir);
    return Promise.all(
      folders.map(async ({ step, path }) => ({ step, files: await hashFiles(path, await filesOf(path)) })),
    );
  }

  async read({ save, name, offset, bytes }: ReadFile__Output): Promise<Buffer> {
    const file = await open(join(this.#dir, saveName(save), plainName(name)), "r");
    try {
      const { bytesRead, buffer } = await file.read(Buffer.alloc(bytes), 0, bytes, offset);
      return buffer.subarray(0, bytesRead);
    } finally {
      await file.close();
    }
  }

  async #arrivalFolder(save: string): Promise<string> {
    if (this.#arriving?.save === saveName(save)) return this.#arriving.folder;
    await this.#discard();
    const folder = join(this.#dir, `.${save}-${randomBytes(4).toString("hex")}`);
    await makeFolder(folder);
    this.#arriving = { save, folder };
    return folder;
  }

  async #discard(): Promise<void> {
    const left = this.#arriving;
    this.#arriving = null;
    if (left !== null) await rm(left.folder, { recursive: true, force: true });
  }

  /** Deletes folders of saves that a killed worker did not finish. */
  async #dropLeftovers(): Promise<void> {
    for (const name of await readdir(this.#dir)) {
      if (/^\.(checkpoint-\d+|final)-[0-9a-f]{8}$/.test(name))
        await rm(join(this.#dir, name), { recursive: true, force: true });
    }
  }

  async #writing<T>(path: string, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (cause) {
      await this.#discard().catch(() => {});
      throw new PipeloraError("PL_OUTPUT_UNWRITABLE", `can't write ${path}: ${(cause as Error).message}`, {
        cause,
        hint: "Free space on that node, or give its worker another --output-dir.",
      });
    }
  }
}

function saveName(save: string): string {
  if (save === FINAL || /^checkpoint-\d+$/.test(save)) return save;
  throw new PipeloraError("PL_PROTOCOL_MISMATCH", `"${save}" is no name of a save`);
}

/** The name if it names a file in the folder itself: the coordinator must not write elsewhere. */
function plainName(name: string): string {
  if (/^[\w.-]+$/.test(name) && name !== "." && name !== "..") return name;
  throw new PipeloraError("PL_PROTOCOL_MISMATCH", `"${name}" is no plain file name`);
}
