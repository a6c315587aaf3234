import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { request as httpRequest } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { certificates, tlsFiles } from "../../support/processes/certificates.ts";
import { outcome, startCoordinator, temporaryFolder } from "../../support/processes/cli.ts";
import { LoopbackHub } from "../../support/processes/hub.ts";
import { LoopbackProxy } from "../../support/processes/proxy.ts";

/** Larger than what the hub keeps by LFS: it comes from the other host. */
const ROWS = Array.from({ length: 200 }, (_, row) => `{"instruction": "q${row}", "output": "a${row}"}\n`).join("");
const NO_PROXIES = Object.fromEntries(
  ["http_proxy", "https_proxy", "all_proxy", "no_proxy"].flatMap((key) => [
    [key, ""],
    [key.toUpperCase(), ""],
  ]),
);

async function fetchRows(t: TestContext, endpoint: string, environment: Record<string, string>, name = "o/rows") {
  const { code, stdout, stderr } = await outcome(
    startCoordinator(["download", name, "--kind", "dataset", "--json"], {
      ...{ ...NO_PROXIES, HF_ENDPOINT: endpoint, HF_HOME: temporaryFolder(t), HF_TOKEN: "secret", HF_HUB_OFFLINE: "" },
      ...environment,
    }),
  );
  if (code === 0) {
    const { files } = JSON.parse(stdout) as { files: string[] };
    assert.equal(readFileSync(files[0]!, "utf8"), ROWS);
  }
  return { code, stderr };
}

test("hubs are reached through the proxies of the environment: plain requests, tunnels, a password, exceptions", async (t) => {
  const hub = await LoopbackHub.start(t);
  hub.add("dataset", "o/rows", { "train.jsonl": ROWS });
  const authority = join(temporaryFolder(t), "tls");
  await certificates(authority, ["localhost"]);
  const { cert, key, ca } = tlsFiles(authority, "localhost");
  // The hub behind TLS; its storage stays plain.
  const front = createServer({ cert: readFileSync(cert), key: readFileSync(key) }, (request, response) => {
    httpRequest(`${hub.endpoint}${request.url}`, { method: request.method!, headers: request.headers }, (reply) => {
      response.writeHead(reply.statusCode!, reply.headers);
      reply.pipe(response);
    }).end();
  });
  await new Promise<void>((resolve) => front.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    front.closeAllConnections();
    front.close();
  });
  const secure = (front.address() as AddressInfo).port;
  const proxy = await LoopbackProxy.start(t, [secure]);
  const at = `http://me:pass%20word@127.0.0.1:${proxy.port}`;

  assert.equal((await fetchRows(t, hub.endpoint, { HTTP_PROXY: at })).code, 0);
  assert.ok(
    proxy.seen.every((line) => line.startsWith("GET http://127.0.0.1:")),
    proxy.seen.join("\n"),
  );
  assert.ok(
    proxy.seen.some((line) => line.includes("/lfs/")),
    "storage too",
  );
  assert.deepEqual([...proxy.authorizations], [`Basic ${Buffer.from("me:pass word").toString("base64")}`]);

  proxy.seen.length = 0;
  const tls = { https_proxy: at, no_proxy: "127.0.0.1", NODE_EXTRA_CA_CERTS: ca };
  assert.equal((await fetchRows(t, `https://localhost:${secure}`, tls)).code, 0);
  assert.ok(
    proxy.seen.length > 0 && proxy.seen.every((line) => line === `CONNECT localhost:${secure}`),
    proxy.seen.join(),
  );

  proxy.seen.length = 0;
  for (const environment of [
    { HTTP_PROXY: at, NO_PROXY: "localhost,127.0.0.1" },
    { HTTPS_PROXY: at },
    { ALL_PROXY: at, no_proxy: "*" },
  ]) {
    assert.equal((await fetchRows(t, hub.endpoint, environment)).code, 0);
  }
  assert.deepEqual(proxy.seen, []);
  assert.equal((await fetchRows(t, hub.endpoint, { ALL_PROXY: at })).code, 0);
  assert.ok(proxy.seen.length > 0);

  const socks = await fetchRows(t, hub.endpoint, { ALL_PROXY: `socks5://me:secret@127.0.0.1:${proxy.port}` });
  assert.notEqual(socks.code, 0);
  assert.match(socks.stderr, /PL_HUB_UNREACHABLE.*socks5:\/\/127\.0\.0\.1/);
  assert.doesNotMatch(socks.stderr, /me:secret/);
  assert.ok(hub.requests.filter(({ host }) => host === "storage").every(({ authorization }) => authorization === null));
});

test("names without an owner are the hub's, which sends on; what is nowhere is said", async (t) => {
  const hub = await LoopbackHub.start(t);
  hub.add("dataset", "o/rows", { "train.jsonl": ROWS });
  hub.rename("squad", "o/rows");
  assert.equal((await fetchRows(t, hub.endpoint, {}, "squad")).code, 0);
  assert.equal((await fetchRows(t, hub.endpoint, {}, "squad:train")).code, 0);
  const lost = await fetchRows(t, hub.endpoint, {}, "sqaud");
  assert.notEqual(lost.code, 0);
  assert.match(lost.stderr, /nothing here is called ..?sqaud..?, and sqaud: http/);
  const { code, stderr } = await outcome(
    startCoordinator(["parameters", "--model", "my-modle"], {
      ...NO_PROXIES,
      HF_ENDPOINT: hub.endpoint,
      HF_HUB_OFFLINE: "",
    }),
  );
  assert.notEqual(code, 0);
  assert.match(stderr, /nothing here is called ..?my-modle/);
});
