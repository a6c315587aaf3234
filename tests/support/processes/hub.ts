import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { join, relative } from "node:path";

/** A file above this is kept by LFS: named by its SHA-256, and sent from the other host. */
const LFS_BYTES = 2000;
/** Entries of a page of the tree. */
const TREE_PAGE = 3;

export interface HubRequest {
  readonly host: "hub" | "storage";
  readonly path: string;
  readonly range: string | null;
  readonly authorization: string | null;
}

interface Repository {
  readonly commit: string;
  readonly files: Map<string, Buffer>;
}

/** What the hub does to the requests that `when` picks, as often as `times` says. */
export interface Fault {
  readonly when: (request: HubRequest) => boolean;
  times: number;
  /** Answered with this status. */
  readonly status?: number;
  readonly headers?: Readonly<Record<string, string>>;
  /** The body ends after so many bytes, and the connection with it. */
  readonly cutAfter?: number;
  /** The body stops there, the connection stays. */
  readonly stallAfter?: number;
  /** Other bytes of the same length. */
  readonly damaged?: boolean;
  /** The range is not looked at. */
  readonly wholeAlways?: boolean;
}

/**
 * A hub on loopback that speaks Hugging Face's HTTP: repositories at revisions, trees in pages, files that redirect to storage of another
 * port, ranges, and commits of whoever has the token "hf_writer". The other one, ModelScope's, has the same repositories.
 */
export class LoopbackHub {
  readonly requests: HubRequest[] = [];
  readonly faults: Fault[] = [];
  readonly #repositories = new Map<string, Repository>();
  readonly #gated = new Set<string>();
  readonly #moved = new Map<string, string>();
  readonly #uploads = new Map<string, Buffer>();
  readonly #servers: Server[] = [];
  /** Repositories that were asked for, made or there already. */
  readonly created: { readonly name: string; readonly visibility: string }[] = [];
  #hub = 0;
  #storage = 0;

  static async start(test: { after(fn: () => void): void }): Promise<LoopbackHub> {
    const hub = new LoopbackHub();
    hub.#hub = await hub.#listen("hub");
    hub.#storage = await hub.#listen("storage");
    test.after(() => hub.stop());
    return hub;
  }

  get endpoint(): string {
    return `http://127.0.0.1:${this.#hub}`;
  }

  stop(): void {
    for (const server of this.#servers) {
      server.closeAllConnections();
      server.close();
    }
  }

  /** `kind`: "model", "dataset". Returns the commit. A second call makes the next commit of "main". */
  add(kind: string, name: string, files: Readonly<Record<string, string | Buffer>>): string {
    const contents = new Map(Object.entries(files).map(([path, content]) => [path, Buffer.from(content)]));
    const hash = createHash("sha1").update(name);
    for (const [path, content] of contents) hash.update(path).update(content);
    const commit = hash.digest("hex");
    const repository = { commit, files: contents };
    for (const revision of ["main", "master", commit])
      this.#repositories.set(`${kind}s/${name}@${revision}`, repository);
    return commit;
  }

  addFolder(kind: string, name: string, dir: string): string {
    const paths = readdirSync(dir, { withFileTypes: true, recursive: true })
      .filter((entry) => entry.isFile())
      .map((entry) => relative(dir, join(entry.parentPath, entry.name)));
    return this.add(kind, name, Object.fromEntries(paths.map((path) => [path, readFileSync(join(dir, path))])));
  }

  /** A name without an owner, as the first models have: the hub sends on to the one that they got later. */
  rename(old: string, name: string): void {
    this.#moved.set(old, name);
  }

  /** Readable with the token "secret" alone. */
  gate(name: string): void {
    this.#gated.add(name);
  }

  /** Requests for files' bytes, of the storage and of what the hub sends itself. */
  downloads(): string[] {
    return this.requests.filter(({ path }) => /\/resolve\/|^\/lfs\//.test(path)).map(({ path }) => path);
  }

  async #listen(host: "hub" | "storage"): Promise<number> {
    const server = createServer((request, response) => {
      const seen: HubRequest = {
        host,
        path: decodeURIComponent(request.url!),
        range: request.headers.range ?? null,
        authorization: request.headers.authorization ?? null,
      };
      this.requests.push(seen);
      const fault = this.faults.find((candidate) => candidate.times > 0 && candidate.when(seen));
      if (fault !== undefined) fault.times -= 1;
      if (fault?.status !== undefined) {
        response.writeHead(fault.status, fault.headers).end();
        return;
      }
      if (request.method !== "GET" && request.method !== "HEAD") {
        void this.#write(request, response, new URL(request.url!, this.endpoint));
        return;
      }
      if (host === "hub") this.#answer(request, response, fault);
      else this.#send(request, response, this.#blob(request.url!.slice("/lfs/".length)), fault);
    });
    this.#servers.push(server);
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return (server.address() as AddressInfo).port;
  }

  /** Files of the last commit to a branch; null: no such repository. */
  pushed(name: string, branch = "main"): ReadonlyMap<string, Buffer> | null {
    return this.#repositories.get(`models/${name}@${branch}`)?.files ?? null;
  }

  /** What a client does who writes: makes a repository, asks how files go, sends large ones to storage, commits. */
  async #write(request: IncomingMessage, response: ServerResponse, url: URL): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const body = Buffer.concat(chunks);
    const reply = (status: number, value: unknown) =>
      response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
    if (request.method === "PUT") {
      const oid = url.pathname.slice("/lfs/".length);
      const right = createHash("sha256").update(body).digest("hex") === oid;
      if (right) this.#uploads.set(oid, body);
      response.writeHead(right ? 200 : 400).end();
      return;
    }
    if (request.headers.authorization !== "Bearer hf_writer") return void reply(401, { error: "Invalid credentials" });
    if (url.pathname === "/api/repos/create") {
      const asked = JSON.parse(body.toString()) as { name: string; organization: string; visibility: string };
      const name = `${asked.organization}/${asked.name}`;
      this.created.push({ name, visibility: asked.visibility });
      if (this.#repositories.has(`models/${name}@main`)) return void reply(409, { error: "You already created this" });
      this.add("model", name, {});
      return void reply(200, { url: `${this.endpoint}/${name}`, id: name });
    }
    const preupload = /^\/api\/models\/(.+)\/preupload\/[^/]+$/.exec(url.pathname);
    if (preupload !== null) {
      const { files } = JSON.parse(body.toString()) as { files: { path: string; size: number }[] };
      const modes = files.map(({ path, size }) => ({ path, uploadMode: size > LFS_BYTES ? "lfs" : "regular" }));
      return void reply(200, { files: modes });
    }
    if (/\.git\/info\/lfs\/objects\/batch$/.test(url.pathname)) {
      const { objects } = JSON.parse(body.toString()) as { objects: { oid: string; size: number }[] };
      const actions = (oid: string) => ({ upload: { href: `http://127.0.0.1:${this.#storage}/lfs/${oid}` } });
      const all = objects.map(({ oid, size }) => ({
        oid,
        size,
        ...(this.#uploads.has(oid) ? {} : { actions: actions(oid) }),
      }));
      return void reply(200, { transfer: "basic", objects: all });
    }
    const commit = /^\/api\/models\/(.+)\/commit\/([^/]+)$/.exec(url.pathname);
    if (commit === null) return void reply(404, { error: "no" });
    const name = commit[1]!;
    const files = new Map<string, Buffer>(this.pushed(name, commit[2]!) ?? []);
    const lines = body.toString().trim().split("\n");
    for (const line of lines.map((text) => JSON.parse(text) as { key: string; value: Record<string, string> })) {
      if (line.key === "file") files.set(line.value["path"]!, Buffer.from(line.value["content"]!, "base64"));
      if (line.key === "lfsFile") files.set(line.value["path"]!, this.#uploads.get(line.value["oid"]!)!);
    }
    const oid = createHash("sha1").update(body).digest("hex");
    this.#repositories.set(`models/${name}@${commit[2]!}`, { commit: oid, files });
    reply(200, { commitOid: oid, commitUrl: `${this.endpoint}/${name}/commit/${oid}`, hookOutput: "" });
  }

  #answer(request: IncomingMessage, response: ServerResponse, fault: Fault | undefined): unknown {
    const url = new URL(request.url!, this.endpoint);
    const refuse = (status: number, code: string) =>
      response.writeHead(status, { "x-error-code": code, "content-type": "application/json" }).end('{"error":"no"}');
    const moved = /^(\/api\/models\/|\/api\/datasets\/|\/datasets\/|\/)([^/]+)(\/(?:revision|tree|resolve)\/.*)$/.exec(
      url.pathname,
    );
    const owned = moved === null ? undefined : this.#moved.get(moved[2]!);
    if (owned !== undefined) {
      return response.writeHead(307, { location: `${moved![1]}${owned}${moved![3]}${url.search}` }).end();
    }
    const info = /^\/api\/(models|datasets)\/([^/]+\/[^/]+)\/revision\/([^/]+)$/.exec(url.pathname);
    const tree = /^\/api\/(models|datasets)\/([^/]+\/[^/]+)\/tree\/([^/]+)$/.exec(url.pathname);
    const file = /^\/(datasets\/)?([^/]+\/[^/]+)\/resolve\/([^/]+)\/(.+)$/.exec(url.pathname);
    const scope = /^\/api\/v1\/(models|datasets)\/([^/]+\/[^/]+)\/repo(\/files|\/tree)?$/.exec(url.pathname);
    if (scope !== null) return this.#answerScope(request, response, url, scope, fault);
    const asked = info ?? tree ?? file;
    if (asked === null) return refuse(404, "");
    const kind = file === null ? asked[1]! : file[1] === undefined ? "models" : "datasets";
    const name = asked[2]!;
    if (this.#gated.has(name) && request.headers.authorization !== "Bearer secret") return refuse(401, "GatedRepo");
    const repository = this.#repositories.get(`${kind}/${name}@${decodeURIComponent(asked[3]!)}`);
    if (repository === undefined) {
      const known = this.#repositories.has(`${kind}/${name}@main`);
      // As the hub does it: whoever has not said who he is hears that he may not.
      return refuse(known ? 404 : 401, known ? "RevisionNotFound" : "RepoNotFound");
    }
    const json = (value: unknown, headers = {}) =>
      response.writeHead(200, { "content-type": "application/json", ...headers }).end(JSON.stringify(value));
    if (info !== null) return json({ _id: "1", id: name, sha: repository.commit, lastModified: "2026-01-01" });
    if (tree !== null) {
      const from = Number(url.searchParams.get("cursor") ?? 0);
      const entries = [...repository.files].map(([path, content]) => treeEntry(path, content));
      url.searchParams.set("cursor", String(from + TREE_PAGE));
      const more = from + TREE_PAGE < entries.length;
      const link = more ? { link: `<${this.endpoint}${url.pathname}${url.search}>; rel="next"` } : {};
      return json(entries.slice(from, from + TREE_PAGE), link);
    }
    const content = repository.files.get(decodeURIComponent(file![4]!));
    if (content === undefined) return refuse(404, "EntryNotFound");
    const entry = treeEntry(file![4]!, content);
    if (entry.lfs === undefined) {
      response.setHeader("x-repo-commit", repository.commit);
      response.setHeader("etag", `"${entry.oid}"`);
      return this.#send(request, response, content, fault);
    }
    return response
      .writeHead(302, {
        location: `http://127.0.0.1:${this.#storage}/lfs/${entry.lfs.oid}`,
        "x-repo-commit": repository.commit,
        "x-linked-etag": `"${entry.lfs.oid}"`,
        "x-linked-size": String(content.length),
      })
      .end();
  }

  #answerScope(
    request: IncomingMessage,
    response: ServerResponse,
    url: URL,
    [, kind, name, list]: RegExpExecArray,
    fault: Fault | undefined,
  ): void {
    const repository = this.#repositories.get(`${kind}/${name}@${url.searchParams.get("Revision")}`);
    if (repository === undefined) {
      response.writeHead(404).end('{"Code":10010205001,"Message":"no such repository"}');
      return;
    }
    if (list === undefined) {
      this.#send(request, response, repository.files.get(url.searchParams.get("FilePath")!)!, fault);
      return;
    }
    const page = Number(url.searchParams.get("PageNumber") ?? 1);
    const size = Number(url.searchParams.get("PageSize") ?? repository.files.size);
    const entries = [...repository.files].map(([path, content]) => ({
      ...{ Path: path, Name: path.split("/").at(-1), Type: "blob", Size: content.length },
      Sha256: createHash("sha256").update(content).digest("hex"),
    }));
    const Files = entries.slice((page - 1) * size, page * size);
    response.writeHead(200).end(JSON.stringify({ Code: 200, Data: { Files } }));
  }

  #blob(oid: string): Buffer {
    for (const { files } of this.#repositories.values()) {
      for (const content of files.values())
        if (createHash("sha256").update(content).digest("hex") === oid) return content;
    }
    throw new Error(`nothing has the hash ${oid}`);
  }

  #send(request: IncomingMessage, response: ServerResponse, content: Buffer, fault: Fault | undefined): void {
    const range = fault?.wholeAlways === true ? null : /^bytes=(\d+)-$/.exec(request.headers.range ?? "");
    const from = range === null ? 0 : Number(range[1]);
    if (from >= content.length && range !== null) {
      response.writeHead(416, { "content-range": `bytes */${content.length}` }).end();
      return;
    }
    const sent = fault?.damaged === true ? Buffer.alloc(content.length - from, 7) : content.subarray(from);
    response.writeHead(range === null ? 200 : 206, {
      "content-length": sent.length,
      "accept-ranges": "bytes",
      ...(range === null ? {} : { "content-range": `bytes ${from}-${content.length - 1}/${content.length}` }),
    });
    const end = fault?.cutAfter ?? fault?.stallAfter;
    if (end === undefined) response.end(sent);
    else {
      response.write(sent.subarray(0, end), () => {
        if (fault!.cutAfter !== undefined) response.destroy();
      });
    }
  }
}

function treeEntry(path: string, content: Buffer) {
  const oid = createHash("sha1").update(`blob ${content.length}\0`).update(content).digest("hex");
  if (content.length <= LFS_BYTES) return { type: "file", path, size: content.length, oid };
  const lfs = { oid: createHash("sha256").update(content).digest("hex"), size: content.length, pointerSize: 130 };
  return { type: "file", path, size: content.length, oid, lfs };
}
