import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { get } from "node:https";
import { join } from "node:path";
import { test } from "node:test";
import { PipeloraError } from "../../../src/common/errors.ts";
import { type AppOptions, createApp, listenOn } from "../../../src/serve/app.ts";
import { certificates, tlsFiles } from "../../support/processes/certificates.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

const OPEN: AppOptions = { apiKey: null, tls: null, onFailure: () => {}, ready: () => true };

test("failures of a plugin's handlers come in OpenAI's shape, and those of this side are heard of", async () => {
  const heard: string[] = [];
  const app = await createApp({
    ...OPEN,
    onFailure: (what, error) => heard.push(`${what}: ${(error as Error).message}`),
  });
  await app.register(async (own) => {
    own.get("/broken", async () => {
      throw new Error("a defect");
    });
    own.get("/late", async () => {
      throw new PipeloraError("PL_REQUEST_LATE", "it took too long");
    });
    own.get("/fine", async () => ({ here: true }));
  });
  const answer = async (url: string) => {
    const { statusCode, json } = await app.inject({ url });
    return [statusCode, json()];
  };
  const error = (message: string, type: string, code: string) => ({ error: { message, type, param: null, code } });
  assert.deepEqual(await answer("/broken"), [500, error("A defect.", "server_error", "PL_INTERNAL")]);
  assert.deepEqual(await answer("/late"), [504, error("It took too long.", "timeout_error", "timeout")]);
  assert.deepEqual(await answer("/fine"), [200, { here: true }]);
  assert.deepEqual(await answer("/nowhere"), [
    404,
    error("Unknown request URL: GET /nowhere.", "invalid_request_error", "unknown_url"),
  ]);
  assert.deepEqual(heard, ["GET /broken: a defect", "GET /late: it took too long"]);
  await app.close();
});

test("the key is asked for everywhere but at /health, which says whether answers come", async () => {
  let ready = false;
  const app = await createApp({ ...OPEN, apiKey: "k1", ready: () => ready });
  app.get("/own", async () => "x");
  const status = async (url: string, authorization?: string) =>
    (await app.inject({ url, headers: authorization === undefined ? {} : { authorization } })).statusCode;
  assert.deepEqual(
    [await status("/own"), await status("/own", "Bearer k2"), await status("/own", "Bearer k1")],
    [401, 401, 200],
  );
  assert.equal(await status("/nowhere"), 401);
  assert.equal(await status("/health"), 503);
  ready = true;
  assert.equal(await status("/health"), 200);
  await app.close();
});

test("it speaks TLS with a certificate, and says what is wrong with one", async (t) => {
  const dir = temporaryFolder(t);
  await certificates(dir, ["here"]);
  const { ca, cert, key } = tlsFiles(dir, "here");
  const app = await createApp({ ...OPEN, tls: { cert, key } });
  const url = await listenOn(app, "127.0.0.1:0");
  assert.match(url, /^https:\/\/127\.0\.0\.1:\d+$/);
  const options = { ca: readFileSync(ca), servername: "pipelora" };
  const status = await new Promise((resolve, reject) => {
    get(`${url}/health`, options, (answer) => {
      answer.resume();
      resolve(answer.statusCode);
    }).on("error", reject);
  });
  assert.equal(status, 200);

  const other = await createApp(OPEN);
  await assert.rejects(listenOn(other, new URL(url).host), { code: "PL_PORT_UNAVAILABLE" });
  await app.close();
  writeFileSync(join(dir, "bad"), "no PEM");
  await assert.rejects(createApp({ ...OPEN, tls: { cert: join(dir, "bad"), key } }), { code: "PL_TLS_INVALID" });
  await assert.rejects(createApp({ ...OPEN, tls: { cert, key: join(dir, "none") } }), {
    code: "PL_TLS_INVALID",
    message: /none can't be read/,
  });
});
