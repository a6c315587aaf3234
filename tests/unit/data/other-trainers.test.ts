import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import type { Columns } from "../../../src/config/column-keys.ts";
import { readRows } from "../../../src/data/readers/read.ts";
import type { Row } from "../../../src/data/readers/rows.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

/** A shape of another trainer's sets with one row of our own, and what becomes of it: its turns, or why it is refused. */
interface Case {
  readonly trainer: "LLaMA-Factory" | "Axolotl" | "TRL";
  /** As docs/reference/sets-of-other-trainers.md names it. */
  readonly name: string;
  readonly row: object | string;
  readonly columns?: Columns;
  readonly extension?: string;
  readonly gives?: string;
  readonly refused?: RegExp;
}

const call = '{"name": "weather", "arguments": {"city": "Oslo"}}';
const tool = { name: "weather", description: "Tells the weather", parameters: { type: "object", properties: {} } };
const chat = [
  { role: "user", content: "Wie spät?" },
  { role: "assistant", content: "Neun." },
];

const CASES: readonly Case[] = [
  // LLaMA-Factory's data folder: dataset_info.json's alpaca and sharegpt kinds.
  {
    trainer: "LLaMA-Factory",
    name: "alpaca",
    row: { instruction: "Add", input: "1 and 2", output: "3" },
    gives: "user:Add|1 and 2 assistant:3",
  },
  {
    trainer: "LLaMA-Factory",
    name: "alpaca with system and history",
    row: { instruction: "And 3?", input: "", output: "6", system: "Adds.", history: [["1 and 2?", "3"]] },
    gives: "system:Adds. user:1 and 2? assistant:3 user:And 3? assistant:6",
  },
  {
    trainer: "LLaMA-Factory",
    name: "alpaca by columns",
    row: { question: "Q", response: "A", system_prompt: "S" },
    columns: { instruction: "question", output: "response", system: "system_prompt" },
    gives: "system:S user:Q assistant:A",
  },
  {
    trainer: "LLaMA-Factory",
    name: "sharegpt",
    row: {
      conversations: [
        { from: "human", value: "Q" },
        { from: "gpt", value: "A" },
      ],
      system: "S",
    },
    gives: "system:S user:Q assistant:A",
  },
  {
    trainer: "LLaMA-Factory",
    name: "sharegpt with tools (glaive)",
    row: {
      conversations: [
        { from: "human", value: "Rain in Oslo?" },
        { from: "function_call", value: call },
        { from: "observation", value: '{"rain": true}' },
        { from: "gpt", value: "Yes." },
      ],
      tools: JSON.stringify([tool]),
    },
    gives: 'user:Rain in Oslo? assistant:[weather{"city":"Oslo"}] tool:{"rain": true} assistant:Yes. +weather',
  },
  {
    trainer: "LLaMA-Factory",
    name: "sharegpt with OpenAI's tags",
    row: { messages: chat },
    gives: "user:Wie spät? assistant:Neun.",
  },
  { trainer: "LLaMA-Factory", name: "plain text (c4_demo.jsonl)", row: { text: "Once." }, gives: "text:Once." },
  {
    trainer: "LLaMA-Factory",
    name: "plain text (wiki_demo.txt)",
    row: "One.\n\nTwo.\n",
    extension: "txt",
    gives: "text:One. text:Two.",
  },
  {
    trainer: "LLaMA-Factory",
    name: "v1 messages with parts and loss_weight",
    row: {
      messages: [
        { role: "user", content: [{ type: "text", value: "Q" }], loss_weight: 0 },
        {
          role: "assistant",
          content: [
            { type: "reasoning", value: "Hm." },
            { type: "text", value: "A" },
          ],
          loss_weight: 0.5,
        },
      ],
    },
    gives: "user:Q*0 assistant:(Hm.)A*0.5",
  },
  {
    trainer: "LLaMA-Factory",
    name: "preferences (dpo_en_demo)",
    row: {
      conversations: [{ from: "human", value: "Q" }],
      chosen: { from: "gpt", value: "good" },
      rejected: { from: "gpt", value: "bad" },
    },
    refused: /"rejected"/,
  },
  {
    trainer: "LLaMA-Factory",
    name: "KTO (kto_en_demo)",
    row: { messages: chat, label: false },
    refused: /"label".*KTO/,
  },
  {
    trainer: "LLaMA-Factory",
    name: "images (mllm_demo)",
    row: { messages: chat, images: ["1.jpg"] },
    refused: /"images"/,
  },
  {
    trainer: "LLaMA-Factory",
    name: "audio (mllm_audio_demo)",
    row: { messages: chat, audios: ["1.mp3"] },
    refused: /"audios"/,
  },
  {
    trainer: "LLaMA-Factory",
    name: "video (mllm_video_demo)",
    row: { messages: chat, videos: ["1.mp4"] },
    refused: /"videos"/,
  },

  // Axolotl's dataset types.
  {
    trainer: "Axolotl",
    name: "alpaca",
    row: { instruction: "I", input: "", output: "O" },
    gives: "user:I assistant:O",
  },
  {
    trainer: "Axolotl",
    name: "jeopardy",
    row: { question: "Q", category: "RIVERS", answer: "A" },
    gives: "user:Q assistant:A",
  },
  {
    trainer: "Axolotl",
    name: "oasst",
    row: { INSTRUCTION: "I", RESPONSE: "R" },
    columns: { instruction: "INSTRUCTION", output: "RESPONSE" },
    gives: "user:I assistant:R",
  },
  {
    trainer: "Axolotl",
    name: "gpteacher, alpaca_chat",
    row: { instruction: "I", input: "N", response: "R" },
    gives: "user:I|N assistant:R",
  },
  { trainer: "Axolotl", name: "alpaca_chat.load_qa", row: { question: "Q", answer: "A" }, gives: "user:Q assistant:A" },
  {
    trainer: "Axolotl",
    name: "alpaca_chat.load_camel_ai",
    row: { message_1: "Q", message_2: "A" },
    columns: { instruction: "message_1", output: "message_2" },
    gives: "user:Q assistant:A",
  },
  {
    trainer: "Axolotl",
    name: "alpaca_w_system.load_open_orca",
    row: { system_prompt: "S", question: "Q", response: "R" },
    gives: "system:S user:Q assistant:R",
  },
  {
    trainer: "Axolotl",
    name: "summarizetldr",
    row: { article: "Long.", summary: "Short." },
    columns: { instruction: "article", output: "summary" },
    gives: "user:Long. assistant:Short.",
  },
  { trainer: "Axolotl", name: "metharme", row: { prompt: "P", generation: "G" }, gives: "user:P assistant:G" },
  {
    trainer: "Axolotl",
    name: "context_qa",
    row: { article: "Long.", question: "Q", answer: "A" },
    refused: /"article" beside "question" and "answer"/,
  },
  {
    trainer: "Axolotl",
    name: "context_qa by columns",
    row: { context: "Long.", question: "Q", answer: "A" },
    columns: { instruction: "question", input: "context", output: "answer" },
    gives: "user:Q|Long. assistant:A",
  },
  {
    trainer: "Axolotl",
    name: "reflection",
    row: { instruction: "I", input: "", output: "O", reflection: "R", corrected: "C" },
    refused: /"reflection"/,
  },
  {
    trainer: "Axolotl",
    name: "explainchoice, concisechoice",
    row: { question: "Q", choices: ["a", "b"], solution: "a", explanation: "E" },
    refused: /lacks "instruction"; it has the keys "question", "choices"/,
  },
  {
    trainer: "Axolotl",
    name: "creative_acr",
    row: { instruction: "I", revision: "R", scores: "4", critiques: "C" },
    refused: /lacks "output"/,
  },
  {
    trainer: "Axolotl",
    name: "chat_template, sharegpt, pygmalion",
    row: {
      conversations: [
        { role: "user", value: "Q" },
        { role: "assistant", value: "A" },
      ],
    },
    gives: "user:Q assistant:A",
  },
  {
    trainer: "Axolotl",
    name: "chat_template with train",
    row: {
      conversations: [
        { from: "human", value: "Q", train: false },
        { from: "assistant", value: "A", train: true },
        { from: "human", value: "Q2", train: false },
        { from: "assistant", value: "A2", train: false },
      ],
    },
    gives: "user:Q*0 assistant:A user:Q2*0 assistant:A2*0",
  },
  {
    trainer: "Axolotl",
    name: "chat_template with train_detail",
    row: {
      conversations: [
        { from: "human", value: "Q" },
        { from: "assistant", value: "A", train_detail: [{ begin_offset: 0, end_offset: 1, train: false }] },
      ],
    },
    refused: /message 2 has "train_detail"/,
  },
  { trainer: "Axolotl", name: "completion, pretraining", row: { text: "T" }, gives: "text:T" },
  {
    trainer: "Axolotl",
    name: "input_output (template-free)",
    row: {
      segments: [
        { label: false, text: "<s>Hello\n" },
        { label: true, text: "there</s>" },
      ],
    },
    gives: "segments:-<s>Hello\n+there</s>",
  },
  {
    trainer: "Axolotl",
    name: "tokenized",
    row: { input_ids: [1, 2, 3], attention_mask: [1, 1, 1], labels: [-100, 2, 3] },
    gives: "ids:1,2,3/-100,2,3",
  },
  {
    trainer: "Axolotl",
    name: "stepwise_supervised",
    row: { prompt: "P", completions: ["one", "two"], labels: [true, false] },
    refused: /"completions"/,
  },
  {
    trainer: "Axolotl",
    name: "preferences (chatml.intel, …)",
    row: { system: "S", question: "Q", chosen: "a", rejected: "b" },
    refused: /"rejected"/,
  },
  { trainer: "Axolotl", name: "KTO", row: { prompt: "P", completion: "C", label: true }, refused: /"label".*KTO/ },

  // TRL's documented formats.
  { trainer: "TRL", name: "language modelling, standard", row: { text: "The sky is" }, gives: "text:The sky is" },
  {
    trainer: "TRL",
    name: "language modelling, conversational",
    row: { messages: chat },
    gives: "user:Wie spät? assistant:Neun.",
  },
  {
    trainer: "TRL",
    name: "prompt-completion, standard",
    row: { prompt: "P", completion: "C" },
    gives: "user:P assistant:C",
  },
  {
    trainer: "TRL",
    name: "prompt-completion, conversational",
    row: { prompt: [chat[0]], completion: [chat[1]] },
    gives: "user:Wie spät? assistant:Neun.",
  },
  {
    trainer: "TRL",
    name: "tool calling",
    row: {
      messages: [
        chat[0],
        {
          role: "assistant",
          tool_calls: [{ type: "function", function: { name: "clock", arguments: { zone: "CET" } } }],
        },
        { role: "tool", name: "clock", content: "09:00" },
        chat[1],
      ],
      tools: [{ type: "function", function: { ...tool, name: "clock" } }],
    },
    gives: 'user:Wie spät? assistant:[clock{"zone":"CET"}] tool:09:00 assistant:Neun. +clock',
  },
  {
    trainer: "TRL",
    name: "content as parts of text",
    row: { messages: [{ role: "user", content: [{ type: "text", text: "Q" }] }, chat[1]] },
    gives: "user:Q assistant:Neun.",
  },
  {
    trainer: "TRL",
    name: "prompt only",
    row: { prompt: "P" },
    refused: /lacks "instruction"; it has the keys "prompt"/,
  },
  {
    trainer: "TRL",
    name: "preferences, explicit prompt",
    row: { prompt: "P", chosen: "a", rejected: "b" },
    refused: /"rejected"/,
  },
  {
    trainer: "TRL",
    name: "preferences, implicit prompt",
    row: { chosen: chat, rejected: chat },
    refused: /"rejected"/,
  },
  {
    trainer: "TRL",
    name: "unpaired preferences",
    row: { prompt: "P", completion: "C", label: false },
    refused: /"label"/,
  },
  {
    trainer: "TRL",
    name: "stepwise supervision",
    row: { prompt: "P", completions: ["a"], labels: [true] },
    refused: /"completions"/,
  },
  {
    trainer: "TRL",
    name: "vision",
    row: { messages: [{ role: "user", content: [{ type: "image" }, { type: "text", text: "Q" }] }, chat[1]] },
    refused: /"content" has a part that is no text/,
  },
];

function shown(row: Row): string {
  switch (row.kind) {
    case "text":
      return `text:${row.text}`;
    case "segments":
      return `segments:${row.segments.map((part) => (part.label ? "+" : "-") + part.text).join("")}`;
    case "ids":
      return `ids:${row.inputIds}/${row.labels}`;
    case "instruction":
      return `user:${[row.instruction, row.input].filter(Boolean).join("|")} assistant:${row.output}`;
    default: {
      const turns = row.messages.map((message) => {
        const calls = ((message["tool_calls"] ?? []) as { function: { name: string; arguments: unknown } }[]).map(
          ({ function: { name, arguments: given } }) => `[${name}${JSON.stringify(given)}]`,
        );
        const thought = message["reasoning_content"] === undefined ? "" : `(${message["reasoning_content"]})`;
        const weight = message["lossWeight"] === undefined ? "" : `*${message["lossWeight"]}`;
        return `${message["role"]}:${thought}${String(message["content"]).replace("\n", "|")}${calls.join("")}${weight}`;
      });
      const tools = ((row.tools ?? []) as { function: { name: string } }[]).map((entry) => ` +${entry.function.name}`);
      return turns.join(" ") + tools.join("");
    }
  }
}

for (const { trainer, name, row, columns = {}, extension = "jsonl", gives, refused } of CASES) {
  test(`${trainer}, ${name}: ${refused === undefined ? "read" : "refused by name"}`, async (t) => {
    const path = join(temporaryFolder(t), `rows.${extension}`);
    writeFileSync(path, typeof row === "string" ? row : JSON.stringify(row));
    const rows: Row[] = [];
    const read = async () => {
      for await (const parsed of readRows(path, columns)) rows.push(parsed);
    };
    if (refused !== undefined) {
      await assert.rejects(read, { code: "PL_DATASET_INVALID", message: refused });
      return;
    }
    await read();
    assert.equal(rows.map(shown).join(" "), gives);
  });
}

test("the page has a line for each, with the same verdict", () => {
  const page = readFileSync(join(PACKAGE_ROOT, "docs/reference/sets-of-other-trainers.md"), "utf8");
  let trainer = "";
  const written = page.split("\n").flatMap((line) => {
    trainer = /^## (.+)$/.exec(line)?.[1] ?? trainer;
    const cells = /^\| ([^|]+) \| `[^|]+` \| (read|by --columns|refused)/.exec(line);
    return cells === null ? [] : [`${trainer}, ${cells[1]}: ${cells[2]}`];
  });
  const verdict = ({ refused, columns }: Case) =>
    refused !== undefined ? "refused" : columns !== undefined ? "by --columns" : "read";
  assert.deepEqual(written.sort(), CASES.map((entry) => `${entry.trainer}, ${entry.name}: ${verdict(entry)}`).sort());
});
