import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import type { RunList } from "../../../src/serve/page/wire.ts";
import { coordinator, temporaryFolder } from "../../support/processes/cli.ts";
import { writeRun } from "../../support/processes/page-runs.ts";
import { startUi } from "../../support/processes/ui.ts";

test("what ui can't show, or may not, is said at once", async (t) => {
  const root = temporaryFolder(t);
  const run = join(root, "run");
  writeRun(run, { steps: 3, ranks: 2 });
  mkdirSync(join(root, "empty"));
  writeFileSync(join(root, "file"), "");
  const taken = createServer();
  await new Promise<void>((resolve) => taken.listen(0, "127.0.0.1", resolve));
  t.after(() => taken.close());
  const { port } = taken.address() as { port: number };
  const cases: readonly (readonly [readonly string[], RegExp])[] = [
    [[], /PL_CONFIG_INVALID.*--output-dir is required/],
    [[join(root, "none")], /PL_CONFIG_INVALID.*does not exist/],
    [[join(root, "empty")], /PL_CONFIG_INVALID.*holds no run[\s\S]*metrics\.jsonl/],
    [[join(root, "file")], /PL_CONFIG_INVALID.*is no folder/],
    [[run, "--http", "0.0.0.0:0"], /PL_CONFIG_INVALID.*beyond loopback/],
    [[run, "--http", `127.0.0.1:${port}`], /PL_PORT_UNAVAILABLE/],
    [[run, "--api-key-file", join(root, "file")], /PL_CONFIG_INVALID.*is empty/],
    [[run, "--http-tls-cert", join(root, "file")], /PL_CONFIG_INVALID.*go together/],
    [[run, "--model", "m"], /PL_CONFIG_INVALID.*--model is no flag of `ui`/],
  ];
  for (const [flags, message] of cases) {
    const { code, stderr, stdout } = await coordinator(["ui", ...flags]);
    assert.notEqual(code, 0, flags.join(" "));
    assert.match(stderr, message);
    assert.equal(stdout, "");
  }
});

test("ui answers for the page and its health, and for nothing else", async (t) => {
  const root = temporaryFolder(t);
  writeRun(join(root, "a"), { steps: 3, ranks: 2 });
  const url = await startUi(t, root);
  const status = async (path: string) => (await fetch(`${url}${path}`)).status;
  assert.deepEqual(await Promise.all(["/", "/health", "/page/run?run=a"].map(status)), [200, 200, 200]);
  assert.deepEqual(await Promise.all(["/v1/models", "/metrics", "/page/run?run=b"].map(status)), [404, 404, 404]);
  const { runs, chat } = (await (await fetch(`${url}/page/runs`)).json()) as RunList;
  assert.deepEqual([runs.map(({ id }) => id), chat], [["a"], false]);
});
