import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import { pathToFileURL } from "node:url";
import { JinjaTemplate, TemplateError } from "../../../src/formats/jinja/index.ts";
import { npmPackage } from "../../support/processes/npm-package.ts";

/** Has the chat templates of many published models as data. */
const PACKAGE = "@huggingface/ollama-utils@0.0.18";
const FIXTURES = new URL("../../fixtures/templates/", import.meta.url);
const read = (name: string) => JSON.parse(readFileSync(new URL(name, FIXTURES), "utf8"));

interface Case {
  readonly messages: readonly object[];
  readonly tools?: boolean;
  readonly add_generation_prompt?: boolean;
}
interface Expected {
  readonly name: string;
  readonly sha256: string;
  /** By the case's name; null: jinja2 fails. */
  readonly texts: Readonly<Record<string, string | null>>;
}
const { now, tokens, tools, cases } = read("conversations.json") as {
  now: string;
  tokens: Record<string, string>;
  tools: object[];
  cases: Record<string, Case>;
};
const expected: Expected[] = read("ollama-utils.json");

describe("published templates write what jinja2 does", () => {
  const templates = new Map<string, string>();
  before(async () => {
    const dir = await npmPackage(PACKAGE);
    if (dir === null) return;
    const { OLLAMA_CHAT_TEMPLATE_MAPPING: all } = (await import(
      pathToFileURL(join(dir, "src/chat-template-automap.ts")).href
    )) as { OLLAMA_CHAT_TEMPLATE_MAPPING: { gguf: string }[] };
    for (const { gguf } of all) templates.set(createHash("sha256").update(gguf).digest("hex"), gguf);
  });

  test("there are 40 at least, and most of their texts are there", () => {
    assert.ok(expected.length >= 40);
    const texts = expected.flatMap((entry) => Object.values(entry.texts));
    assert.ok(texts.filter((text) => text !== null).length > 0.9 * texts.length);
  });

  for (const { name, sha256, texts } of expected) {
    test(name, (t) => {
      if (templates.size === 0) return t.skip("no package registry is reached");
      const source = templates.get(sha256);
      assert.ok(source !== undefined, "the package has another template");
      for (const [kind, text] of Object.entries(texts)) {
        const { messages, tools: has, add_generation_prompt = false } = cases[kind]!;
        const values = { messages, tools: has ? tools : null, documents: null, add_generation_prompt, ...tokens };
        const render = (): string => new JinjaTemplate(source).render(values, new Date(now)).text;
        if (text === null) assert.throws(render, TemplateError, kind);
        else assert.equal(render(), text, kind);
      }
    });
  }
});
