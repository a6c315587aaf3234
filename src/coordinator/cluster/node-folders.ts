import { randomBytes } from "node:crypto";
import { mkdir, open, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { PipeloraError, toPipeloraError } from "../../common/errors.ts";
import type { Config } from "../../config/options.ts";
import { type HashedFile, hashFiles } from "../../formats/checkpoint-folders.ts";
import type { ToWorker } from "../../rpc/generated/pipelora/v1/ToWorker.ts";
import type { WorkerConnection } from "../../rpc/worker-connection.ts";

/** Bytes of a file that go in one message; one is on its way at a time to each node. */
const PIECE_BYTES = 4 << 20;

/** What became of a save on one node. */
export interface NodeSave {
  readonly node: string;
  /** Its folder there. */
  readonly dir: string;
  /** Why it failed; null: written, or found in a shared folder. */
  readonly error: PipeloraError | null;
  /** Node (null: the coordinator) whose folder is the same one; undefined: it has its own. */
  readonly sharedWith: string | null | undefined;
}

export function nodesJson(nodes: readonly NodeSave[]): object[] {
  return nodes.map(({ node, dir, error, sharedWith }) => ({
    node,
    dir,
    ...(sharedWith === undefined ? {} : { shared_with: sharedWith ?? "coordinator" }),
    error: error === null ? null : { code: error.code, message: error.message },
  }));
}

export interface NodeCheckpoint {
  readonly node: string;
  readonly dir: string;
  readonly step: number;
  readonly files: readonly HashedFile[];
}

/** The nodes of this run save into folders of their own. Local workers share the coordinator's machine and its folder. */
export function savedEverywhere(config: Pick<Config, "save_on_each_node" | "listen">): boolean {
  return config.save_on_each_node && config.listen !== null;
}

interface NodeFolder {
  readonly node: string;
  readonly worker: WorkerConnection;
  readonly dir: string;
  readonly sharedWith: string | null | undefined;
  /** Why the folder could not be opened. */
  readonly error: PipeloraError | null;
}

/** The nodes' own output folders: what the coordinator saves is copied to each, byte for byte, and verified there. */
export class NodeFolders {
  readonly #outputDir: string;
  /** The adapter's name; empty: the run has no other. */
  readonly #adapter: string;
  readonly #folders: readonly NodeFolder[];

  private constructor(outputDir: string, adapter: string, folders: readonly NodeFolder[]) {
    this.#outputDir = outputDir;
    this.#adapter = adapter;
    this.#folders = folders;
  }

  /**
   * Asks the first worker of each node for its folder; `name`: of an adapter of several, which has one of its name (null: the run has no other).
   * Folders that are one and the same (a volume mounted on several nodes, or the coordinator's own machine) are found by marks, and written once.
   */
  static async open(
    members: readonly WorkerConnection[],
    outputDir: string,
    name: string | null,
  ): Promise<NodeFolders> {
    const adapter = name ?? "";
    const firsts = members.filter(
      (member, rank) => members.findIndex(({ hello }) => hello.node === member.hello.node) === rank,
    );
    const token = randomBytes(6).toString("hex");
    const markOf = (index: number) => `.pipelora-mark-${token}-${index}`;
    const marks = ["coordinator", ...firsts.keys()].map((owner) => `.pipelora-mark-${token}-${owner}`);
    await writeFile(join(outputDir, marks[0]!), "");
    const all = (action: string) =>
      Promise.all(
        firsts.map((worker, index) =>
          worker
            .request({ outputFolder: { action, dir: outputDir, mark: markOf(index), marks, adapter } })
            .then((reply) => reply.outputFolder!)
            .catch(failureOf),
        ),
      );
    let marked: Awaited<ReturnType<typeof all>>;
    let seen: Awaited<ReturnType<typeof all>>;
    try {
      marked = await all("mark");
      seen = await all("look");
    } finally {
      await all("unmark");
      await rm(join(outputDir, marks[0]!), { force: true });
    }
    const folders = firsts.map((worker, index): NodeFolder => {
      const { node } = worker.hello;
      const [opened, looked] = [marked[index]!, seen[index]!];
      if (opened instanceof PipeloraError) {
        return { node, worker, dir: outputDir, sharedWith: undefined, error: opened };
      }
      const found = looked instanceof PipeloraError ? [] : looked.seen;
      const before = marks.slice(1, index + 1).findIndex((mark) => found.includes(mark));
      const sharedWith = found.includes(marks[0]!) ? null : before === -1 ? undefined : firsts[before]!.hello.node;
      return { node, worker, dir: opened.dir, sharedWith, error: null };
    });
    return new NodeFolders(outputDir, adapter, folders);
  }

  /** Each node's folder, with the error where it could not be opened. */
  get nodes(): readonly NodeSave[] {
    return this.#folders;
  }

  /**
   * Copies files of the coordinator's folder `save` ("checkpoint-N", "final": the output folder itself) to every node that has a
   * folder of its own, all at once; checkpoints called `dropped` are deleted there. Returns each node's outcome and the hashes that all of them agree on.
   */
  async save(
    save: string,
    names: readonly string[],
    dropped: readonly string[],
  ): Promise<{ nodes: NodeSave[]; files: HashedFile[] }> {
    const source = save === "final" ? this.#outputDir : join(this.#outputDir, save);
    const files = await hashFiles(source, names);
    const nodes = await Promise.all(
      this.#folders.map(async ({ node, worker, dir, sharedWith }): Promise<NodeSave> => {
        if (sharedWith !== undefined) return { node, dir, sharedWith, error: null };
        const error = await copyTo(worker, source, { save, files, dropped, adapter: this.#adapter }).then(
          () => null,
          failureOf,
        );
        return { node, dir, sharedWith, error };
      }),
    );
    return { nodes, files };
  }

  /**
   * Renames the checkpoints in the nodes' own folders that are neither called `own` nor of the step that the run goes on from or an earlier
   * one (null: from none). Returns their new names, by node.
   */
  async setAsideAllBut(
    own: readonly string[],
    upTo: number | null,
  ): Promise<{ node: string; moved: readonly string[] }[]> {
    const folders = this.#folders.filter(({ error, sharedWith }) => error === null && sharedWith === undefined);
    return Promise.all(
      folders.map(async ({ node, worker }) => {
        const outputFolder = {
          action: "set_aside",
          dir: this.#outputDir,
          mark: upTo === null ? "none" : `checkpoint-${upTo}`,
          marks: [...own],
          adapter: this.#adapter,
        };
        return { node, moved: (await worker.request({ outputFolder })).outputFolder!.seen };
      }),
    );
  }

  /** Checkpoints of all nodes' own folders, the newest first. */
  async checkpoints(): Promise<NodeCheckpoint[]> {
    const own = this.#folders.filter(({ error, sharedWith }) => error === null && sharedWith === undefined);
    const lists = await Promise.all(
      own.map(async ({ node, worker, dir }) => {
        const { checkpoints } = (await worker.request({ listCheckpoints: { adapter: this.#adapter } })).checkpoints!;
        return checkpoints.map(({ step, files }) => ({ node, dir, step, files }));
      }),
    );
    return lists.flat().sort((a, b) => b.step - a.step);
  }

  /** The nodes without this checkpoint, or with other bytes in it. */
  async lacking(step: number, files: readonly HashedFile[]): Promise<NodeFolders> {
    const found = await this.checkpoints();
    const same = (held: readonly HashedFile[]) =>
      files.every(({ name, sha256 }) => held.some((other) => other.name === name && other.sha256 === sha256));
    const holders = found.filter((held) => held.step === step && same(held.files)).map(({ node }) => node);
    return new NodeFolders(
      this.#outputDir,
      this.#adapter,
      this.#folders.filter(({ node, sharedWith }) => sharedWith === undefined && !holders.includes(node)),
    );
  }

  /** Copies a node's checkpoint to the coordinator's folder. Returns its path there. Errors: PL_RESUME_INVALID, PL_OUTPUT_UNWRITABLE. */
  async fetch({ node, step, files }: NodeCheckpoint): Promise<string> {
    const { worker } = this.#folders.find((folder) => folder.node === node)!;
    const save = `checkpoint-${step}`;
    const final = join(this.#outputDir, save);
    const temporary = join(this.#outputDir, `.${save}-${randomBytes(4).toString("hex")}`);
    try {
      await mkdir(temporary);
      for (const { name, size } of files) {
        if (!/^[\w.-]+$/.test(name)) throw new Error(`"${name}" is no plain file name`);
        const file = await open(join(temporary, name), "wx");
        try {
          for (let offset = 0; offset < size; offset += PIECE_BYTES) {
            const piece = { save, name, offset, bytes: PIECE_BYTES, adapter: this.#adapter };
            const reply = await worker.request({ readFile: piece });
            await file.write(reply.fileChunk!.data, 0, reply.fileChunk!.data.length, offset);
          }
          await file.sync();
        } finally {
          await file.close();
        }
      }
      const found = await hashFiles(
        temporary,
        files.map(({ name }) => name),
      );
      const torn = found.find(({ sha256 }, index) => sha256 !== files[index]!.sha256);
      if (torn !== undefined) throw new Error(`${torn.name} arrived with another hash`);
      await rm(final, { recursive: true, force: true });
      await rename(temporary, final);
      return final;
    } catch (cause) {
      await rm(temporary, { recursive: true, force: true });
      throw new PipeloraError(
        "PL_RESUME_INVALID",
        `${save} of node "${node}" can't be fetched: ${(cause as Error).message}`,
        { cause },
      );
    }
  }
}

/** Files of one save, and checkpoints that have no more room. */
interface CommitFiles {
  readonly save: string;
  readonly files: readonly HashedFile[];
  readonly dropped: readonly string[];
  readonly adapter: string;
}

async function copyTo(
  worker: WorkerConnection,
  source: string,
  { save, files, dropped, adapter }: CommitFiles,
): Promise<void> {
  for (const { name, size } of files) {
    const file = await open(join(source, name), "r");
    try {
      for (let offset = 0; offset === 0 || offset < size; offset += PIECE_BYTES) {
        const { bytesRead, buffer } = await file.read(Buffer.alloc(PIECE_BYTES), 0, PIECE_BYTES, offset);
        const data = buffer.subarray(0, bytesRead);
        await worker.request({ writeFile: { save, name, offset, data, adapter } } as ToWorker);
      }
    } finally {
      await file.close();
    }
  }
  await worker.request({ commitFiles: { save, files: [...files], dropped: [...dropped], adapter } });
}

/** A node's own failure; a lost worker is the run's. */
function failureOf(thrown: unknown): PipeloraError {
  const error = toPipeloraError(thrown);
  if (error.code === "PL_WORKER_LOST") throw error;
  return error;
}
