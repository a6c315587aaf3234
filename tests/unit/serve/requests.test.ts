import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { invalidRequest } from "../../../src/serve/openai/errors.ts";
import { templateMessages } from "../../../src/serve/openai/messages.ts";
import { chatRequest, completionRequest } from "../../../src/serve/openai/requests.ts";

const GOOD_CHAT = { model: "m", messages: [{ role: "user", content: "x" }] };
const GOOD_COMPLETION = { model: "m", prompt: "x" };

test("whatever JSON comes is taken or refused by name", () => {
  const bodies = [chatRequest, completionRequest] as const;
  const names = [...new Set(bodies.flatMap((schema) => Object.keys(schema.shape)))];
  fc.assert(
    fc.property(
      fc.constantFrom(0, 1),
      fc.dictionary(fc.oneof(fc.constantFrom(...names), fc.string()), fc.jsonValue(), { maxKeys: 4 }),
      fc.boolean(),
      (which, changes, good) => {
        const body = good ? { ...[GOOD_CHAT, GOOD_COMPLETION][which], ...changes } : changes;
        const parsed = bodies[which]!.safeParse(body);
        if (parsed.success) return;
        const { status, body: answer } = invalidRequest(parsed.error.issues);
        assert.equal(status, 400);
        const { message, param, code } = answer.error;
        assert.ok(typeof param === "string" && message.includes(param), message);
        assert.ok(code === "invalid_value" || code === "unknown_parameter");
      },
    ),
    { numRuns: 500 },
  );
});

test("null is nothing, and what OpenAI's clients send by default is taken", () => {
  const nulls = Object.fromEntries(
    Object.keys(chatRequest.shape)
      .filter((key) => key !== "model" && key !== "messages")
      .map((key) => [key, null]),
  );
  assert.ok(chatRequest.safeParse({ ...GOOD_CHAT, ...nulls }).success);
  for (const more of [
    { stop: [], n: 1, user: "u", metadata: { a: "b" }, response_format: { type: "text" }, tool_choice: "auto" },
    { stream: true, stream_options: { include_usage: true }, modalities: ["text"], parallel_tool_calls: false },
    { temperature: 2, top_p: 0.1, presence_penalty: -2, logit_bias: {}, seed: -5, max_tokens: 1 },
  ]) {
    assert.ok(chatRequest.safeParse({ ...GOOD_CHAT, ...more }).success, JSON.stringify(more));
  }
  for (const wrong of [
    { response_format: { type: "json_schema" } },
    { tool_choice: { type: "function", function: { name: "f" } } },
    { modalities: ["text", "audio"] },
    { reasoning_effort: "high" },
    { functions: [] },
    { max_tokens: 0 },
    { n: 0 },
    { logit_bias: { x: 1 } },
    { stop: [""] },
    { tools: [{ type: "function", function: { name: "a b" } }] },
  ]) {
    assert.ok(!chatRequest.safeParse({ ...GOOD_CHAT, ...wrong }).success, JSON.stringify(wrong));
  }
});

test("messages come to templates as text, calls with their arguments as objects", () => {
  const { messages } = chatRequest.parse({
    model: "m",
    messages: [
      { role: "developer", content: "be brief" },
      {
        role: "user",
        content: [
          { type: "text", text: "a" },
          { type: "text", text: "b" },
        ],
        name: "ann",
      },
      {
        ...{ role: "assistant", content: null, refusal: null, annotations: [] },
        tool_calls: [
          { id: "1", type: "function", function: { name: "f", arguments: '{"x": [1]}' } },
          { id: "2", type: "function", function: { name: "g", arguments: "not JSON" } },
        ],
      },
      { role: "tool", content: "7", tool_call_id: "1" },
      { role: "assistant", content: [{ type: "refusal", refusal: "no" }] },
    ],
  });
  const call = (id: string, name: string, values: unknown) => ({
    id,
    type: "function",
    function: { name, arguments: values },
  });
  assert.deepEqual(templateMessages(messages), [
    { role: "system", content: "be brief" },
    { role: "user", content: "ab", name: "ann" },
    { role: "assistant", content: "", tool_calls: [call("1", "f", { x: [1] }), call("2", "g", "not JSON")] },
    { role: "tool", content: "7", tool_call_id: "1" },
    { role: "assistant", content: "no" },
  ]);
});
