import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { JinjaTemplate, TemplateError } from "../../../src/formats/jinja/index.ts";

interface Case {
  readonly template: string;
  /** What jinja2 3.1.6 writes, set up as transformers does; null: it fails. */
  readonly text: string | null;
}
const { now, messages, cases } = JSON.parse(
  readFileSync(new URL("../../fixtures/templates/jinja2.json", import.meta.url), "utf8"),
) as { now: string; messages: object[]; cases: Case[] };

for (const { template, text } of cases) {
  test(`jinja writes what Python's does: ${JSON.stringify(template).slice(0, 70)}`, () => {
    const render = () => new JinjaTemplate(template).render({ messages }, new Date(now)).text;
    if (text === null) assert.throws(render, TemplateError);
    else assert.equal(render(), text);
  });
}

const GREEDY: Readonly<Record<string, string>> = {
  range: "{{ range(10**9) }}",
  loops:
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
  doubling: "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
  repeat: "{{ 'a' * 10**12 }}",
  width: "{{ '%999999999999d' % 1 }}",
  replace: "{% set a = 'a' * 1000000 %}{{ a.replace('a', a) }}",
  recursion: "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
  nesting: `{{ ${"(".repeat(5000)}1${")".repeat(5000)} }}`,
  output: "{% set a = 'a' * 1000000 %}{% for i in range(99999) %}{{ a }}{% endfor %}",
};
for (const [name, template] of Object.entries(GREEDY)) {
  test(`a template that asks for too much ends quickly: ${name}`, { timeout: 15_000 }, () => {
    assert.throws(() => new JinjaTemplate(template).render({}, new Date(now)), TemplateError);
  });
}

test("generation blocks and passes over messages are marked", () => {
  const template = new JinjaTemplate(
    "{% for m in messages %}<{{ m.role }}>{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
  );
  const { text, marks } = template.render({ messages: [{ role: "a", content: "x" }] }, new Date(now));
  assert.equal(text, "<a>x");
  assert.deepEqual(marks, [
    { kind: "generation", begin: 3, end: 4 },
    { kind: "pass", number: 0, begin: 0, end: 4 },
  ]);
});

test("a rendering is no longer than a tokenizer can take in seconds", () => {
  const long = new JinjaTemplate("{{ messages[0].content * 100000 }}");
  const render = (content: string) => long.render({ messages: [{ role: "user", content }] }, new Date());
  assert.equal(render("a".repeat(83)).text.length, 8_300_000);
  assert.throws(() => render("a".repeat(84)), /writes 8400000 characters, expected at most 8388608/);
});
