import assert from "node:assert/strict";
import { test } from "node:test";
import { PipeloraError } from "../../../src/common/errors.ts";
import { ChatTemplate, type TrainOn } from "../../../src/data/chat-template.ts";
import type { ChatMessage } from "../../../src/data/readers/messages.ts";
import { parseRow } from "../../../src/data/readers/rows.ts";
import type { Tokenizer } from "../../../src/formats/tokenizer/tokenizer.ts";

/** One id a UTF-16 unit: spans show as they are. */
const units: Tokenizer = {
  encode: (text) => Array.from({ length: text.length }, (_, at) => text.charCodeAt(at)),
  decode: (ids) => String.fromCharCode(...ids),
  tokenId: () => null,
  bosId: null,
  eosId: null,
  padId: null,
  addBos: false,
  vocabSize: 65536,
  isQwen1: false,
  chatTemplate: null,
  specialTokens: {},
};

function trained(source: string, messages: readonly ChatMessage[], trainOn: TrainOn = "all"): string {
  const { labels } = new ChatTemplate(units, source, new Date(0)).encode(messages, trainOn);
  return labels
    .map((label) => (label < 0 ? "·" : String.fromCharCode(label)))
    .join("")
    .replace(/·+/g, "·");
}

const talk: ChatMessage[] = [
  { role: "user", content: "A" },
  { role: "assistant", content: "B" },
  { role: "user", content: "C" },
  { role: "assistant", content: "D" },
];
const LOOP = "{% for m in messages %}<{{ m.role }}>";
/** Thinking stands in the last answer only, as in Qwen3. */
const HYBRID = `${LOOP}{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }};{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}`;

test("each turn by what stands of it in the whole rendering", () => {
  assert.equal(trained(HYBRID, talk), "·B;·<think></think>D;");
});

test("--train-on last, and turns that are switched off", () => {
  assert.equal(trained(HYBRID, talk, "last"), "·<think></think>D;");
  assert.equal(trained(HYBRID, [talk[0]!, { ...talk[1]!, lossWeight: 0 }, talk[2]!, talk[3]!]), "·<think></think>D;");
});

test("a generation prompt that opens the reasoning is no label, whether or not the turn has it", () => {
  const prompt = "{% if add_generation_prompt %}<assistant><think>\n{% endif %}";
  assert.equal(trained(`${LOOP}{{ m.content }};{% endfor %}${prompt}`, talk), "·B;·D;");
  const always = `${LOOP}{% if m.role == 'assistant' %}<think>\n</think>{% endif %}{{ m.content }};{% endfor %}${prompt}`;
  assert.equal(trained(always, talk), "·</think>B;·</think>D;");
});

test("generation blocks say what is trained on", () => {
  assert.equal(trained(`${LOOP}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}`, [talk[1]!]), "·B·");
});

test("a header that is always written is no label; an end token behind the loop is one", () => {
  assert.equal(trained(`${LOOP}{{ m.content }};{% endfor %}<assistant>`, talk.slice(0, 2)), "·B;·");
  const ended = `${LOOP}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% else %}</s>{% endif %}`;
  assert.match(trained(ended, talk.slice(0, 2)), /B<\/s>$/);
});

test("messages by number, and by macro", () => {
  const numbered =
    "{% for i in range(messages|length) %}{% set m = messages[i] %}<{{ m.role }}>{{ m.content }};{% endfor %}";
  assert.equal(trained(`${numbered}{% if add_generation_prompt %}<assistant>{% endif %}`, talk), "·B;·D;");
  const macro = `{% macro all() %}${LOOP}{{ m.content }};{% endfor %}{% endmacro %}{{ all() }}`;
  assert.equal(trained(`${macro}{% if add_generation_prompt %}<assistant>{% endif %}`, talk), "·B;·D;");
});

test("a system message that is left out is refused, an answer's text that is left out is told", () => {
  const without = `{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }};{% endfor %}`;
  assert.throws(
    () => trained(without, [{ role: "system", content: "Be brief" }, ...talk]),
    (error) =>
      error instanceof PipeloraError && /system message/.test(error.message) && /user message/.test(error.hint!),
  );
  const template = new ChatTemplate(units, without, new Date(0));
  const thinks = [talk[0]!, { role: "assistant", content: "<think>why</think>B" }];
  assert.equal(template.encode(thinks).textLost, true);
  assert.equal(template.encode(talk).textLost, false);
});

const messages = [
  { role: "user", content: "Q" },
  { role: "assistant", content: "A" },
];
const SHAPES: Readonly<Record<string, object>> = {
  ShareGPT: {
    conversations: [
      { from: "human", value: "Q" },
      { from: "gpt", value: "A" },
    ],
  },
  "Qwen's finetune.py": {
    id: "1",
    conversations: [
      { from: "user", value: "Q" },
      { from: "assistant", value: "A" },
    ],
  },
  "conversations of roles": { conversations: messages },
  "pairs of one conversation": { conversation: [{ human: "Q", assistant: "A" }] },
  "JSON as text": { messages: JSON.stringify(messages) },
  "prompt and completion as messages": { prompt: [messages[0]], completion: [messages[1]] },
  "content in parts": { messages: messages.map((own) => ({ ...own, content: [{ type: "text", text: own.content }] })) },
};
for (const [name, row] of Object.entries(SHAPES)) {
  test(`a row's shape: ${name}`, () => {
    assert.deepEqual(parseRow("f", 1, row), { kind: "messages", messages, tools: null });
  });
}

test("rows' shapes that are one question: prompt, query; system and history of alpaca rows; plain text", () => {
  const row = { kind: "instruction", instruction: "Q", input: "", output: "A" };
  for (const shape of [
    { prompt: "Q", completion: "A" },
    { query: "Q", response: "A" },
    { prompt: "Q", response: "A" },
  ]) {
    assert.deepEqual(parseRow("f", 1, shape), row);
  }
  assert.deepEqual(parseRow("f", 1, { instruction: "C", output: "D", history: [["A", "B"]], system: "S" }), {
    kind: "messages",
    messages: [{ role: "system", content: "S" }, ...talk],
    tools: null,
  });
  assert.deepEqual(parseRow("f", 1, { text: "once" }), { kind: "text", text: "once" });
});

for (const key of ["loss", "train", "train_on_turn", "training"]) {
  test(`"${key}": false takes a message's labels away`, () => {
    const row = parseRow("f", 1, { messages: [messages[0], { ...messages[1], [key]: false }] });
    assert.equal(row.kind === "messages" && row.messages[1]!.lossWeight, 0);
  });
}

test("a message's weight is that of each of its labels; the template does not see it", () => {
  const source = `{{ messages | map(attribute='lossWeight') | join }}${HYBRID}`;
  const weighted = [talk[0]!, { ...talk[1]!, lossWeight: 0.25 }, talk[2]!, { ...talk[3]!, lossWeight: 3 }];
  const { labels, weights } = new ChatTemplate(units, source, new Date(0)).encode(weighted);
  const shown = labels.flatMap((label, t) => (label < 0 ? [] : [`${String.fromCharCode(label)}${weights![t]}`]));
  const last = [..."<think></think>D;"].map((letter) => `${letter}3`);
  assert.deepEqual(shown, ["B0.25", ";0.25", ...last]);
  assert.equal(new ChatTemplate(units, HYBRID, new Date(0)).encode(talk).weights, null);
});

test("loss_weight and weight are one thing: any number from 1e-6 to 1e6, or 0", () => {
  const weightOf = (keys: object) => {
    const row = parseRow("f", 1, { messages: [messages[0], { ...messages[1], ...keys }] });
    return row.kind === "messages" ? (row.messages[1]!.lossWeight ?? 1) : null;
  };
  for (const key of ["loss_weight", "weight"]) {
    for (const weight of [0, 1e-6, 0.5, 1, 2.5, 1e6]) assert.equal(weightOf({ [key]: weight }), weight);
    assert.equal(weightOf({ [key]: null }), 1);
    for (const wrong of [-1, 1e-7, 1e7, "0.5", true, [1]]) {
      assert.throws(() => weightOf({ [key]: wrong }), { message: new RegExp(`row 1, message 2: "${key}" must be`) });
    }
  }
  assert.equal(weightOf({ weight: 0.5, loss_weight: 0.5 }), 0.5);
  assert.throws(() => weightOf({ weight: 0.5, loss_weight: 0.25 }), /differ/);
  assert.equal(weightOf({ loss_weight: 0.5, train: false }), 0);
  assert.equal(weightOf({ loss_weight: 0.5, train: true }), 0.5);
  assert.equal(weightOf({ loss_scale: 0 }), 0);
  assert.equal(weightOf({ loss_scale: 1 }), 1);
  assert.throws(() => weightOf({ loss_scale: 2 }), /"loss_scale" 2 can't be honoured: ms-swift/);
});
