import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import type { Logger } from "../../../src/common/log.ts";
import { templatesOf } from "../../../src/coordinator/planning/row-templates.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";
import { fixture } from "../shared-data.ts";

test("plain ChatML in a missing template's place is said once, however many sets ask for it", async (t) => {
  const dir = temporaryFolder(t);
  const tokenizer = JSON.parse(readFileSync(fixture("tokens/tokenizer.json"), "utf8")) as { added_tokens: object[] };
  const added = ["<|im_start|>", "<|im_end|>"].map((content, at) => ({
    ...{ id: 5000 + at, content, special: true, single_word: false, lstrip: false, rstrip: false, normalized: false },
  }));
  tokenizer.added_tokens.push(...added);
  writeFileSync(join(dir, "tokenizer.json"), JSON.stringify(tokenizer));
  const said: string[] = [];
  const log = { warn: (text: string) => said.push(text) } as unknown as Logger;
  const templates = templatesOf({ system: null, train_on: "all", template_date: null }, dir, log);
  for (const name of ["auto", "auto", "chat"] as const) {
    const { template, say } = templates(name);
    const made = await template();
    say(made.remark!);
    const { tokens, labels } = made.encodeMessages([
      { role: "user", content: "a" },
      { role: "assistant", content: "b" },
    ]);
    assert.equal(tokens.filter((id) => id === 5000).length, 2);
    assert.ok(labels.includes(5001));
  }
  assert.equal(said.length, 1, said.join("\n"));
  assert.match(said[0]!, /no chat template.*plain ChatML/);
});
