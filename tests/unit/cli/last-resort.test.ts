import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";

const exit = JSON.stringify(join(PACKAGE_ROOT, "src", "cli", "exit.ts"));
const forever = "new Promise(() => setInterval(() => {}, 1000))";

/** What nobody caught, by where it is thrown. */
const BODIES: Readonly<Record<string, string>> = {
  "the body": "throw new Error('a cause');",
  "a rejection": `Promise.reject(new Error('a cause')); await ${forever};`,
  "a callback": `setTimeout(() => { throw new Error('a cause'); }, 1); await ${forever};`,
  "a stream": `new (await import('node:stream')).PassThrough().destroy(new Error('a cause')); await ${forever};`,
  "a rejection without an error": `Promise.reject('a cause'); await ${forever};`,
};

for (const [where, body] of Object.entries(BODIES)) {
  for (const json of [false, true]) {
    test(`what nobody caught in ${where} is a coded end with its cause${json ? ", as JSON" : ""}`, () => {
      const code = `import(${exit}).then(({ runProgram }) => runProgram(() => ${json}, async () => { ${body} }));`;
      const { status, stderr } = spawnSync(process.execPath, ["--import", "tsx", "-e", code], {
        encoding: "utf8",
        timeout: 20_000,
      });
      assert.equal(status, 1, stderr);
      if (!json) assert.match(stderr, /^PL_INTERNAL: a cause/);
      else {
        const { error } = JSON.parse(stderr) as { error: { code: string; message: string; cause: string } };
        assert.deepEqual([error.code, error.message], ["PL_INTERNAL", "a cause"]);
        assert.match(error.cause, /a cause/);
      }
    });
  }
}
