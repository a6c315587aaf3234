import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { toolReader } from "../../../src/serve/openai/tool-calls.ts";

const HERMES = "{% if tools %}<tool_call>{% endif %}";
const MISTRAL = "{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]";
const LLAMA = `{% if tools %}{"name": function name, "parameters": dictionary}{% endif %}`;

/** What a reader makes of a text that comes in pieces cut at these places. */
function read(template: string, text: string, cuts: readonly number[]) {
  const reader = toolReader(template)!;
  let content = "";
  const calls: [string, unknown][] = [];
  const take = (piece: ReturnType<typeof reader.push>) => {
    content += piece.content;
    for (const call of piece.calls) {
      assert.match(call.id, /^\w+$/);
      calls.push([call.name, JSON.parse(call.arguments)]);
    }
  };
  const places = [...new Set(cuts.map((cut) => cut % (text.length + 1)))].sort((a, b) => a - b);
  let from = 0;
  for (const place of [...places, text.length]) {
    take(reader.push(text.slice(from, place)));
    from = place;
  }
  take(reader.end());
  return { content, calls };
}

const call = (name: string, values: unknown) => JSON.stringify({ name, arguments: values });

const CASES: [string, string, string, string, [string, unknown][]][] = [
  ["none", HERMES, "Just a < b and <tool", "Just a < b and <tool", []],
  ["one", HERMES, `<tool_call>\n${call("f", { a: 1 })}\n</tool_call>`, "", [["f", { a: 1 }]]],
  [
    "two behind text",
    HERMES,
    `I look. <tool_call>${call("f", {})}</tool_call>\n<tool_call>${call("g", { b: "</" })}</tool_call>`,
    "I look. ",
    [
      ["f", {}],
      ["g", { b: "</" }],
    ],
  ],
  ["without its end", HERMES, `<tool_call>${call("f", { a: [1] })}`, "", [["f", { a: [1] }]]],
  ["no JSON", HERMES, "<tool_call>f(1)</tool_call>!", "<tool_call>f(1)</tool_call>!", []],
  ["cut off", HERMES, '<tool_call>{"name": "f', '<tool_call>{"name": "f', []],
  [
    "a list",
    MISTRAL,
    `[TOOL_CALLS][${call("f", { a: 1 })},${call("g", {})}]`,
    "",
    [
      ["f", { a: 1 }],
      ["g", {}],
    ],
  ],
  [
    "named",
    MISTRAL,
    '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]x1[ARGS]{}',
    "",
    [
      ["f", { a: 1 }],
      ["g", {}],
    ],
  ],
  ["text alone", MISTRAL, "Hello [TOOL", "Hello [TOOL", []],
  ["cut off too", MISTRAL, '[TOOL_CALLS][{"name"', '[TOOL_CALLS][{"name"', []],
  ["an object", LLAMA, '\n{"name": "f", "parameters": {"a": 1}}', "", [["f", { a: 1 }]]],
  ["behind its tag", LLAMA, '<|python_tag|>{"name": "f", "parameters": {}}', "", [["f", {}]]],
  ["an object that is no call", LLAMA, '{"answer": 42}', '{"answer": 42}', []],
  ["words", LLAMA, "  The weather {is} fine", "  The weather {is} fine", []],
];

for (const [name, template, text, content, calls] of CASES) {
  test(`calls, wherever the text is cut: ${name}`, () => {
    fc.assert(
      fc.property(fc.array(fc.nat(500), { maxLength: 12 }), (cuts) => {
        const got = read(template, text, cuts);
        assert.deepEqual(got.calls, calls);
        assert.equal(got.content.trim(), content.trim());
        if (calls.length === 0) assert.equal(got.content, content);
      }),
      { numRuns: 60 },
    );
  });
}

test("a template that knows no tools has no reader", () => {
  assert.equal(toolReader("{% for message in messages %}{{ message.content }}{% endfor %}"), null);
  assert.equal(toolReader("{{ 'parameters' }}"), null);
});
