import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { request } from "node:http";
import { join } from "node:path";
import { after, before, test } from "node:test";
import OpenAI, { APIError } from "openai";
import {
  ALPHABET,
  CALL,
  digitsAfter,
  EOS,
  writeChainAdapter,
  writeChainModel,
} from "../../support/models/chain-model.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";
import { type RunningServer, startServer } from "../../support/processes/server.ts";

const KEY = "sk-of-these-tests";
let server: RunningServer;
let client: OpenAI;
const model = "letters";

before(async (t) => {
  const dir = temporaryFolder(t as unknown as { after(fn: () => void): void });
  await writeChainModel(dir);
  await writeChainAdapter(join(dir, "x"), "x", { r: 1, alpha: 3 });
  await writeChainAdapter(join(dir, "from-m"), "m", { r: 3, alpha: 16 });
  writeFileSync(join(dir, "key"), `${KEY}\n`);
  server = await startServer([
    ...["--model", dir, "--workers", "2", "--served-model-name", model, "--api-key-file", join(dir, "key")],
    ...["--adapter", `from-x=${join(dir, "x")}`, "--adapter", join(dir, "from-m")],
    ...["--max-num-seqs", "4", "--kv-cache-tokens", "2400", "--max-concurrent-requests", "10"],
    ...["--request-timeout", "20", "--log-level", "warn"],
  ]);
  client = new OpenAI({ apiKey: KEY, baseURL: `${server.url}/v1`, maxRetries: 0 });
});
after(async () => {
  assert.equal(await server.stop(), 0, server.log());
});

const ask = (text: string) => [{ role: "user" as const, content: text }];

async function failure(work: Promise<unknown>): Promise<APIError> {
  const error = await work.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof APIError, String(error));
  return error;
}

test("a chat is answered whole, with reason and usage", async () => {
  const reply = await client.chat.completions.create({ model, temperature: 0, messages: ask("hello") });
  assert.equal(reply.object, "chat.completion");
  assert.deepEqual(reply.choices[0]!.message, { role: "assistant", content: ALPHABET, refusal: null });
  assert.equal(reply.choices[0]!.finish_reason, "stop");
  // "<|user|>", five letters, "<|assistant|>"; 26 letters and the end.
  assert.deepEqual(reply.usage, { prompt_tokens: 7, completion_tokens: 27, total_tokens: 34 });
  assert.equal(reply.system_fingerprint, null);
  const short = await client.chat.completions.create({ model, messages: ask("x"), max_completion_tokens: 3, seed: 5 });
  assert.deepEqual([short.choices[0]!.message.content, short.choices[0]!.finish_reason], ["ABC", "length"]);
  const parts = [
    { type: "text" as const, text: "he" },
    { type: "text" as const, text: "llo" },
  ];
  const joined = await client.chat.completions.create({
    model,
    messages: [{ role: "user", content: parts }],
    max_tokens: 1,
  });
  assert.equal(joined.usage!.prompt_tokens, 7);
});

test("a stream says the same in pieces, with usage where asked for", async () => {
  const stream = await client.chat.completions.create({
    ...{ model, temperature: 0, messages: ask("hello"), stream: true, stream_options: { include_usage: true } },
  });
  let text = "";
  let pieces = 0;
  let reason: string | null = null;
  let tokens = 0;
  for await (const { choices, usage, object } of stream) {
    assert.equal(object, "chat.completion.chunk");
    text += choices[0]?.delta.content ?? "";
    pieces++;
    reason = choices[0]?.finish_reason ?? reason;
    tokens = usage?.total_tokens ?? tokens;
  }
  assert.deepEqual([text, reason, tokens], [ALPHABET, "stop", 34]);
  assert.ok(pieces > 20);
  const whole = await client.chat.completions.stream({ model, temperature: 0, messages: ask("again") }).finalContent();
  assert.equal(whole, ALPHABET);
  // Two at a time, text that waits for a stop string, log-probabilities of every token.
  const texts = ["", ""];
  const shown: string[][] = [[], []];
  for await (const { choices } of await client.chat.completions.create({
    ...{ model, temperature: 0, messages: ask("x"), stream: true, n: 2, max_tokens: 6, stop: "EG", logprobs: true },
  })) {
    for (const { index, delta, logprobs } of choices) {
      texts[index] += delta.content ?? "";
      shown[index]!.push(...(logprobs?.content ?? []).map(({ token }) => token));
    }
  }
  assert.deepEqual(texts, ["ABCDEF", "ABCDEF"]);
  assert.deepEqual(shown, [[..."ABCDEF"], [..."ABCDEF"]]);
});

test("n replies, stops, biases and log-probabilities", async () => {
  const three = await client.chat.completions.create({
    model,
    n: 3,
    messages: ask("hi"),
    stop: ["GH", "K"],
    temperature: 0,
  });
  assert.deepEqual(
    three.choices.map(({ index, message, finish_reason }) => [index, message.content, finish_reason]),
    [0, 1, 2].map((index) => [index, "ABCDEF", "stop"]),
  );
  // A hot draw among all tokens: the same seed says the same, another one something else.
  const drawn = async (seed: number, n: number) => {
    const { choices } = await client.completions.create({
      model,
      prompt: "3",
      max_tokens: 12,
      temperature: 30,
      seed,
      n,
      stop: null,
    });
    return choices.map(({ text }) => text);
  };
  const [first, second] = await drawn(9, 2);
  assert.deepEqual(await drawn(9, 1), [first]);
  assert.deepEqual(await drawn(10, 1), [second]);
  assert.notEqual(first, second);

  const barred = await client.completions.create({
    model,
    prompt: "A",
    temperature: 0,
    max_tokens: 3,
    logit_bias: { 66: -100, 90: 50 },
  });
  assert.equal(barred.choices[0]!.text, "ZZZ");
  const { choices } = await client.chat.completions.create({
    ...{ model, messages: ask("hi"), temperature: 0, max_tokens: 3, logprobs: true, top_logprobs: 2 },
  });
  const content = choices[0]!.logprobs!.content!;
  assert.deepEqual(
    content.map(({ token, bytes }) => [token, bytes]),
    [..."ABC"].map((letter) => [letter, [letter.charCodeAt(0)]]),
  );
  for (const { logprob, top_logprobs: top, token } of content) {
    // One logit of sqrt(288) among 288, the others 0.
    assert.ok(Math.abs(logprob + Math.log(1 + 287 * Math.exp(-Math.sqrt(288)))) < 1e-4);
    assert.deepEqual([top.length, top[0]!.token], [2, token]);
    assert.ok(top[1]!.logprob < -15);
  }
  const completion = await client.completions.create({
    model,
    prompt: "W",
    temperature: 0,
    max_tokens: 9,
    logprobs: 1,
  });
  const logprobs = completion.choices[0]!.logprobs!;
  assert.deepEqual(
    [completion.choices[0]!.text, logprobs.tokens, logprobs.text_offset],
    ["XYZ", ["X", "Y", "Z"], [0, 1, 2]],
  );
});

test("completions of texts, of ids and of several, echoed and streamed", async () => {
  const several = await client.completions.create({
    model,
    prompt: ["1", "U"],
    temperature: 0,
    max_tokens: 5,
    n: 2,
    echo: true,
  });
  assert.deepEqual(
    several.choices.map(({ text, finish_reason }) => [text, finish_reason]),
    [
      ["123456", "length"],
      ["123456", "length"],
      ["UVWXYZ", "length"],
      ["UVWXYZ", "length"],
    ],
  );
  const ids = await client.completions.create({ model, prompt: [[56], [65, 66]], temperature: 0, max_tokens: 2 });
  assert.deepEqual(
    ids.choices.map(({ text }) => text),
    ["90", "CD"],
  );
  const stopped = await client.completions.create({
    ...{ model, prompt: "1", temperature: 0, max_tokens: 9, stop_token_ids: [53] },
  } as OpenAI.CompletionCreateParamsNonStreaming);
  assert.deepEqual([stopped.choices[0]!.text, stopped.choices[0]!.finish_reason], ["234", "stop"]);
  let text = "";
  for await (const { choices } of await client.completions.create({
    model,
    prompt: "7",
    temperature: 0,
    max_tokens: 8,
    stream: true,
  })) {
    text += choices[0]!.text;
  }
  assert.equal(text, digitsAfter(7, 8));
});

test("tools reach the template, and a call comes back as one", async () => {
  const tools = [
    { type: "function" as const, function: { name: CALL.name, parameters: { type: "object", properties: {} } } },
  ];
  const reply = await client.chat.completions.create({ model, temperature: 0, messages: ask("weather?"), tools });
  const [call] = reply.choices[0]!.message.tool_calls!;
  assert.equal(reply.choices[0]!.finish_reason, "tool_calls");
  assert.equal(reply.choices[0]!.message.content, null);
  assert.ok(call?.type === "function" && /^call_/.test(call.id));
  assert.deepEqual([call.function.name, JSON.parse(call.function.arguments)], [CALL.name, CALL.arguments]);
  const answered = await client.chat.completions.create({
    ...{ model, temperature: 0, tools },
    messages: [...ask("weather?"), reply.choices[0]!.message, { role: "tool", tool_call_id: call.id, content: "sun" }],
  });
  assert.equal(answered.choices[0]!.message.content, ALPHABET);
  const none = await client.chat.completions.create({
    model,
    temperature: 0,
    messages: ask("x"),
    tools,
    tool_choice: "none",
  });
  assert.equal(none.choices[0]!.message.content, ALPHABET);
  const streamed = client.chat.completions.stream({ model, temperature: 0, messages: ask("weather?"), tools });
  const final = await streamed.finalChatCompletion();
  assert.deepEqual(
    final.choices[0]!.message.tool_calls!.map((one) => one.type === "function" && one.function.arguments),
    [JSON.stringify(CALL.arguments)],
  );
  assert.equal(final.choices[0]!.finish_reason, "tool_calls");
});

test("adapters over one base answer by name, side by side", async () => {
  const expected: Readonly<Record<string, string>> = { [model]: ALPHABET, "from-x": "xyz", "from-m": "mnopqrstuvwxyz" };
  const asked = [...Object.keys(expected), ...Object.keys(expected).reverse(), "from-x", "from-m"];
  const answers = await Promise.all(
    asked.map(async (name) => {
      const reply = await client.chat.completions.create({ model: name, temperature: 0, messages: ask("hello") });
      assert.equal(reply.model, name);
      return reply.choices[0]!.message.content;
    }),
  );
  assert.deepEqual(
    answers,
    asked.map((name) => expected[name]),
  );
});

test("who leaves frees its place at once", async () => {
  const stream = await client.completions.create({
    model,
    prompt: "1",
    temperature: 0,
    max_tokens: 2000,
    stream: true,
  });
  for await (const _ of stream) break;
  stream.controller.abort();
  // The cache has room for one such reply at a time.
  const leaving = new AbortController();
  const waiting = client.completions.create(
    { model, prompt: "1", temperature: 0, max_tokens: 2000 },
    { signal: leaving.signal },
  );
  setTimeout(() => leaving.abort(), 50);
  await assert.rejects(waiting, /abort/i);
  const reply = await client.completions.create({ model, prompt: "1", temperature: 0, max_tokens: 300 });
  assert.equal(reply.choices[0]!.text, digitsAfter(1, 300));
});

test("many at once: each gets its own answer, or is told when to come again", async () => {
  const asked = Array.from({ length: 24 }, (_, i) => ({ digit: i % 10, count: 5 + ((i * 7) % 40) }));
  const answers = await Promise.all(
    asked.map(async ({ digit, count }) => {
      try {
        const { choices } = await client.completions.create({
          model,
          prompt: String(digit),
          temperature: 0,
          max_tokens: count,
        });
        assert.equal(choices[0]!.text, digitsAfter(digit, count));
        return 200;
      } catch (error) {
        assert.ok(error instanceof APIError, String(error));
        assert.ok(Number(error.headers!.get("retry-after")) >= 1);
        assert.equal(error.code, "rate_limit_exceeded");
        return error.status;
      }
    }),
  );
  const good = answers.filter((status) => status === 200).length;
  // Ten at a time are taken on; an early one may end before the last comes.
  assert.ok(good >= 10 && good < answers.length, `${good} answers`);
  assert.equal(answers.filter((status) => status === 429).length, answers.length - good);
});

test("what is wrong with a request is said in OpenAI's shape", async () => {
  const bad: [string, Record<string, unknown>, number, string | null, string][] = [
    ["an unknown model", { model: "gpt-4o" }, 404, "model_not_found", "model"],
    ["a temperature", { temperature: -1 }, 400, "invalid_value", "temperature"],
    ["an unknown field", { temprature: 1 }, 400, "unknown_parameter", "temprature"],
    ["no messages", { messages: [] }, 400, "invalid_value", "messages"],
    ["a role", { messages: [{ role: "alien", content: "x" }] }, 400, "invalid_value", "messages.0.role"],
    [
      "an image",
      { messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "x" } }] }] },
      400,
      "invalid_value",
      "messages.0.content",
    ],
    ["a schema", { response_format: { type: "json_object" } }, 400, "invalid_value", "response_format"],
    ["a forced call", { tool_choice: "required" }, 400, "invalid_value", "tool_choice"],
    ["too long", { max_tokens: 5000 }, 400, "context_length_exceeded", "messages"],
    ["log-probabilities of nothing", { top_logprobs: 3 }, 400, "invalid_value", "top_logprobs"],
    ["more replies than ever", { n: 11 }, 400, null, "n"],
    ["a bias outside", { logit_bias: { 9999: 1 } }, 400, null, "logit_bias"],
  ];
  for (const [name, changes, status, code, param] of bad) {
    const body = { model, messages: ask("x"), ...changes } as unknown as OpenAI.ChatCompletionCreateParamsNonStreaming;
    const error = await failure(client.chat.completions.create(body));
    assert.deepEqual([error.status, error.code, error.param], [status, code, param], `${name}: ${error.message}`);
    assert.equal(error.type, "invalid_request_error");
  }
  const stranger = new OpenAI({ apiKey: "wrong", baseURL: `${server.url}/v1`, maxRetries: 0 });
  const refused = await failure(stranger.models.list());
  assert.deepEqual([refused.status, refused.code], [401, "invalid_api_key"]);
  const post = (path: string, body: string, type = "application/json") =>
    fetch(`${server.url}${path}`, {
      method: "POST",
      body,
      headers: { authorization: `Bearer ${KEY}`, "content-type": type },
    });
  for (const [path, body, type, status] of [
    ["/v1/chat/completions", "{", "application/json", 400],
    ["/v1/chat/completions", "x", "text/csv", 415],
    ["/v1/nothing", "{}", "application/json", 404],
    ["/v1/completions", "null", "application/json", 400],
  ] as const) {
    const answer = await post(path, body, type);
    const { error } = (await answer.json()) as { error: { message: string; type: string } };
    assert.equal(answer.status, status, `${path} ${body.slice(0, 20)}`);
    assert.ok(error.message.length > 0 && error.type === "invalid_request_error");
  }
});

test("a body that is too large is refused by its length", async () => {
  const { hostname, port } = new URL(server.url);
  const headers = { authorization: `Bearer ${KEY}`, "content-type": "application/json", "content-length": 9 << 20 };
  const status = await new Promise<number>((resolve, reject) => {
    const sent = request({ hostname, port, path: "/v1/completions", method: "POST", headers }, (answer) => {
      resolve(answer.statusCode!);
      sent.destroy();
    });
    sent.on("error", reject);
    sent.flushHeaders();
  });
  assert.equal(status, 413);
});

test("models are listed, and health needs no key", async () => {
  const list = await client.models.list();
  assert.deepEqual(
    list.data.map(({ id, object }) => [id, object]),
    [model, "from-x", "from-m"].map((id) => [id, "model"]),
  );
  assert.equal((await client.models.retrieve(model)).id, model);
  assert.equal((await failure(client.models.retrieve("other/one"))).status, 404);
  const health = await fetch(`${server.url}/health`);
  assert.deepEqual([health.status, await health.json()], [200, { status: "ok" }]);
  assert.ok(EOS > 255);
});
