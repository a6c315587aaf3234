import assert from "node:assert/strict";
import { copyFileSync, mkdirSync, readFileSync, statSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { connect as connectTls } from "node:tls";
import { TlsIdentity } from "../../../src/common/tls.ts";
import { loadEngine } from "../../../src/engine/index.ts";
import { GrpcReceiver } from "../../../src/links/grpc-receiver.ts";
import { GrpcSender } from "../../../src/links/grpc-sender.ts";
import { Mailbox } from "../../../src/links/mailbox.ts";
import { serveSenders } from "../../../src/links/service.ts";
import { reach } from "../../../src/rpc/dial.ts";
import { listen } from "../../../src/rpc/server.ts";
import type { Trust } from "../../../src/rpc/trust.ts";
import { fromHost } from "../../../src/worker/tensors.ts";
import { bothAuthorities, certificates, tlsFiles } from "../../support/processes/certificates.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

const nobody = () => {};

function trustOf(dir: string, name: string, token: string | null = null, ca?: string): Trust {
  const files = { ...tlsFiles(dir, name), ...(ca === undefined ? {} : { ca }) };
  return { tls: new TlsIdentity(files, "pipelora", nobody), token: () => token };
}

/** A tensor service with this trust, and every refusal it reports. */
async function serve(t: { after(fn: () => void): void }, trust: Trust) {
  const { crc32c } = loadEngine();
  const refused: string[] = [];
  const senders: GrpcSender[] = [];
  const options = (toRank: number, onFailed: (error: Error) => void) => {
    return { ends: { session: "s", fromRank: 0, toRank }, timeoutMs: 5_000, onFailed };
  };
  const server = await listen(
    "127.0.0.1:0",
    trust,
    (_peer, reason) => refused.push(reason),
    (grpc) => serveSenders(grpc, ({ toRank }) => senders[toRank]!),
  );
  t.after(() => server.close());
  const address = `127.0.0.1:${server.port}`;
  /** A rank with its own trust that opens a link from this service. */
  const link = (from: Trust) => {
    const broken: string[] = [];
    const toRank = senders.length;
    const sender = new GrpcSender(options(toRank, nobody), crc32c);
    senders.push(sender);
    const mailbox = new Mailbox(toRank, 5_000);
    const receiver = new GrpcReceiver(
      {
        ...options(toRank, (error) => broken.push(error.message)),
        address,
        trust: from,
        deliver: (key, tensor) => mailbox.deliver(key, tensor),
        isAwaited: () => false,
      },
      crc32c,
    );
    t.after(() => {
      receiver.close();
      sender.close();
    });
    const passes = async (key: string) => {
      await sender.send(key, fromHost(Uint8Array.of(1, 2, 3, 4), [1], "float32"));
      const came = await mailbox.take(key, 0);
      assert.deepEqual([...came.pieces[0]!], [1, 2, 3, 4]);
      came.release();
    };
    return { broken, passes };
  };
  return { address, port: server.port, refused, link };
}

/** What a raw TLS client hears: its error's code, or "greeted". */
function rawClient(port: number, files: { ca: string; cert?: string; key?: string }): Promise<string> {
  const read = (path?: string) => (path === undefined ? undefined : readFileSync(path));
  return new Promise((resolve) => {
    const socket = connectTls({
      ...{ port, host: "127.0.0.1", servername: "pipelora", ALPNProtocols: ["h2"] },
      ...{ ca: read(files.ca), cert: read(files.cert), key: read(files.key) },
    });
    socket.once("data", () => resolve("greeted"));
    socket.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    socket.once("close", () => resolve("closed"));
  });
}

test("only members get through: each other client is refused by its own reason, a stream in use is untouched", async (t) => {
  const root = temporaryFolder(t);
  const [ours, theirs, old] = [join(root, "ours"), join(root, "theirs"), join(root, "old")];
  await certificates(ours, ["a", "b"]);
  await certificates(theirs, ["b"]);
  const stranger = join(root, "stranger");
  for (const dir of [old, stranger]) {
    mkdirSync(dir);
    for (const file of ["ca.crt", "ca.key"]) copyFileSync(join(ours, file), join(dir, file));
  }
  await certificates(old, ["b"], -1);
  await certificates(stranger, ["web"], 1, "web.example");

  const server = await serve(t, trustOf(ours, "a", "secret"));
  const good = trustOf(ours, "b", "secret");
  const inUse = server.link(good);
  await inUse.passes("before");

  const ca = join(ours, "ca.crt");
  assert.match(await rawClient(server.port, { ca }), /closed/);
  assert.equal(await rawClient(server.port, { ...tlsFiles(theirs, "b"), ca }), "closed");
  assert.equal(await rawClient(server.port, { ...tlsFiles(old, "b"), ca }), "closed");
  assert.equal(await rawClient(server.port, { ...tlsFiles(stranger, "web"), ca }), "closed");
  await new Promise<void>((resolve) => {
    const noise = connect(server.port, "127.0.0.1", () => noise.write("GET / HTTP/1.1\r\n\r\n\0\x01\x02noise"));
    noise.on("error", nobody);
    noise.on("close", () => resolve());
    noise.resume();
  });
  for (const [trust, expected] of [
    [trustOf(ours, "b", "guess"), /join token is another/],
    [trustOf(ours, "b", null), /no join token/],
  ] as const) {
    const { broken } = server.link(trust);
    const deadline = Date.now() + 5_000;
    while (broken.length === 0 && Date.now() < deadline) await new Promise((resolve) => setTimeout(resolve, 20));
    assert.match(broken.join(), expected);
  }
  const said = server.refused.join("\n");
  for (const reason of [
    /its certificate: \w+/,
    /UNABLE_TO_VERIFY|SELF_SIGNED/,
    /CERT_HAS_EXPIRED/,
    /web\.example/,
    /http request|wrong version/i,
    /join token is another/,
    /no join token/,
  ]) {
    assert.match(said, reason);
  }
  assert.equal(server.refused.length, 7, said);
  await inUse.passes("after");
  assert.deepEqual(inUse.broken, []);
});

test("new connections take replaced files; half a replacement is passed over; old streams stay", async (t) => {
  const root = temporaryFolder(t);
  const [first, second] = [join(root, "first"), join(root, "second")];
  await certificates(first, ["a", "b"]);
  await certificates(second, ["a", "b"]);
  const mounted = join(root, "mounted");
  await certificates(mounted, ["a"]);
  const mount = (from: string, files: string[]) => {
    for (const file of files) copyFileSync(join(from, "a", file), join(mounted, "a", file));
  };
  mount(first, ["ca.crt", "tls.crt", "tls.key"]);
  const server = await serve(t, trustOf(mounted, "a"));
  await server.link(trustOf(first, "b")).passes("1");
  const { passes, broken } = server.link(trustOf(first, "b"));
  await passes("early");

  const both = bothAuthorities(join(root, "both.crt"), first, second);
  copyFileSync(both, join(mounted, "a", "ca.crt"));
  mount(second, ["tls.crt"]);
  await server.link(trustOf(first, "b")).passes("2");
  mount(second, ["tls.key", "ca.crt"]);
  await server.link(trustOf(second, "b")).passes("3");
  assert.equal(await rawClient(server.port, { ...tlsFiles(first, "b"), ca: both }), "closed");
  await passes("late");
  assert.deepEqual(broken, []);
});

test("own files that can't work are refused by name before anything is dialled", async (t) => {
  const root = temporaryFolder(t);
  const [ours, theirs, old, future] = ["ours", "theirs", "old", "future"].map((name) => join(root, name));
  await certificates(ours!, ["a", "b"]);
  await certificates(theirs!, ["a"]);
  await certificates(old!, ["a"], -1);
  await certificates(future!, ["a"]);
  const a = tlsFiles(ours!, "a");
  const open = (files: { ca: string; cert: string; key: string }, name = "pipelora") => {
    new TlsIdentity(files, name, nobody);
  };
  open(a);
  const refuses = (files: typeof a, message: RegExp, name?: string) =>
    assert.throws(() => open(files, name), { code: "PL_TLS_INVALID", message });
  refuses({ ...a, key: join(root, "none") }, /none can't be read/);
  refuses({ ...a, key: a.cert }, /no private key/);
  refuses({ ...a, cert: a.key }, /no certificate in PEM/);
  refuses({ ...a, key: tlsFiles(ours!, "b").key }, /does not belong/);
  refuses({ ...a, ca: tlsFiles(theirs!, "a").ca }, /not issued by an authority/);
  refuses(tlsFiles(old!, "a"), /expired at/);
  refuses(a, /expected the cluster's name DNS:other/, "other");
  t.mock.timers.enable({ apis: ["Date"], now: Date.now() - 24 * 3600 * 1000 });
  refuses(a, /is valid from .* this machine's clock says/);
  assert.equal(statSync(a.key).mode & 0o077, 0);
});

test("waiting for a coordinator: it comes late; a stranger in its place, or none, is said", async (t) => {
  const root = temporaryFolder(t);
  const [ours, theirs] = [join(root, "ours"), join(root, "theirs")];
  await certificates(ours, ["a", "b"]);
  await certificates(theirs, ["a"]);
  const b = trustOf(ours, "b");
  const placeholder = await listen("127.0.0.1:0", trustOf(ours, "a"), nobody, nobody);
  placeholder.close();
  const address = `127.0.0.1:${placeholder.port}`;
  const reasons: string[] = [];
  const waiting = reach(address, b, 10_000, (reason) => reasons.push(reason));
  await new Promise((resolve) => setTimeout(resolve, 600));
  const server = await listen(address, trustOf(ours, "a"), nobody, nobody);
  assert.equal(await waiting, "127.0.0.1");
  assert.match(reasons.join(), /ECONNREFUSED/);
  server.close();

  await assert.rejects(reach(address, b, 800, nobody), { code: "PL_WORKER_MISSING", message: /ECONNREFUSED/ });
  await assert.rejects(reach("no-such-host.invalid:1", b, 300, nobody), {
    code: "PL_WORKER_MISSING",
    message: /no-such-host/,
  });
  const stranger = await listen("127.0.0.1:0", trustOf(theirs, "a"), nobody, nobody);
  t.after(() => stranger.close());
  await assert.rejects(reach(`127.0.0.1:${stranger.port}`, b, 10_000, nobody), { code: "PL_PEER_UNTRUSTED" });
  const deaf = await listen("127.0.0.1:0", trustOf(ours, "a"), nobody, nobody);
  t.after(() => deaf.close());
  const both = bothAuthorities(join(root, "both.crt"), ours, theirs);
  await assert.rejects(reach(`127.0.0.1:${deaf.port}`, trustOf(theirs, "a", null, both), 10_000, nobody), {
    code: "PL_PEER_UNTRUSTED",
    message: /refuses this process's certificate/,
  });
});
