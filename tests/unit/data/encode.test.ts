import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { cp, mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import type { PipeloraError } from "../../../src/common/errors.ts";
import { type RowTemplate, rowTemplate } from "../../../src/data/templates.ts";
import { loadTokenizer } from "../../../src/formats/tokenizer/load.ts";
import type { Tokenizer } from "../../../src/formats/tokenizer/tokenizer.ts";
import { trainBpe } from "../../../src/formats/tokenizer/train-bpe.ts";
import { encodeDataset } from "../../support/models/encode.ts";
import { fixture, shared } from "../shared-data.ts";

const folder = await mkdtemp(join(tmpdir(), "pipelora-encode-"));
let files = 0;
async function fileOf(rows: readonly object[]): Promise<string> {
  const path = join(folder, `${files++}.json`);
  await writeFile(path, JSON.stringify(rows));
  return path;
}
const noTemplate = () => {
  throw new Error("no template is needed here");
};
const limits = { maxLength: 384, vocabSize: 1000 };
const fails = (code: string, message: RegExp) => (error: PipeloraError) => {
  assert.equal(error.code, code, error.message);
  assert.match(error.message, message);
  return true;
};

/** Tokens as text, each in brackets where it is trained on. */
function shown(
  tokenizer: Tokenizer,
  tokens: ArrayLike<number>,
  labels: ArrayLike<number>,
): { prompt: string; trained: string } {
  const split = (wanted: boolean) => Array.from(tokens).filter((_, t) => (labels[t] === -100) !== wanted);
  return { prompt: tokenizer.decode(split(false)), trained: tokenizer.decode(split(true)) };
}

describe("the tutorial's encoding", () => {
  let tokenizer: Tokenizer;
  before(async () => {
    const dir = await mkdtemp(join(tmpdir(), "pipelora-encode-"));
    await writeFile(join(dir, "qwen.tiktoken"), trainBpe(["娘娘万福金安。"], 256 + 208));
    tokenizer = await loadTokenizer(dir);
  });

  test("prompt masked, answer's turn and the end token labelled", async () => {
    const path = await fileOf([{ instruction: "娘娘。", input: "万福", output: "好。" }]);
    const dataset = await encodeDataset(path, () => rowTemplate(tokenizer, { name: "auto", system: null }), limits);
    const { tokens, labels } = dataset.row(0);
    const { prompt, trained } = shown(tokenizer, tokens, labels);
    assert.equal(
      prompt,
      "<|im_start|>system\n现在你要扮演皇帝身边的女人--甄嬛.<|im_end|>\n<|im_start|>user\n娘娘。万福<|im_end|>",
    );
    assert.equal(trained, "<|im_start|>assistant\n好。<|im_end|>\n<|endoftext|>");
    const begin = labels.findIndex((label) => label !== -100);
    assert.deepEqual(labels.subarray(begin), tokens.subarray(begin));
  });

  test("a system line of one's own; rows cut at the maximal length", async () => {
    const path = await fileOf([
      { instruction: "a", output: "b" },
      { instruction: "a".repeat(90), output: "b" },
    ]);
    const dataset = await encodeDataset(path, () => rowTemplate(tokenizer, { name: "tutorial", system: "S" }), {
      ...limits,
      maxLength: 60,
    });
    assert.match(
      shown(tokenizer, dataset.row(0).tokens, dataset.row(0).labels).prompt,
      /^<\|im_start\|>system\nS<\|im_end\|>/,
    );
    assert.deepEqual([dataset.rowLength(1), dataset.statistics.truncated, dataset.statistics.unlabelled], [60, 1, 1]);
  });

  test("prompts begin as training rows do", () => {
    const template = rowTemplate(tokenizer, { name: "auto", system: null });
    const row = template.encodeInstruction({ kind: "instruction", instruction: "娘娘", input: "", output: "x" });
    const prompt = template.encodePrompt([{ role: "user", content: "娘娘" }]);
    assert.deepEqual(row.tokens.slice(0, prompt.length), prompt);
    assert.match(tokenizer.decode(prompt), /<\|im_start\|>assistant\n$/);
    assert.deepEqual(template.stopIds, [tokenizer.tokenId("<|im_end|>")]);
  });

  test("chat messages become ChatML, every assistant turn labelled", async () => {
    const messages = [
      { role: "user", content: "u1" },
      { role: "assistant", content: "a1" },
      { role: "user", content: "u2" },
      { role: "assistant", content: "a2" },
    ];
    const path = await fileOf([{ messages }]);
    const dataset = await encodeDataset(path, () => rowTemplate(tokenizer, { name: "auto", system: "S" }), limits);
    const { prompt, trained } = shown(tokenizer, dataset.row(0).tokens, dataset.row(0).labels);
    assert.equal(trained, "a1<|im_end|>\na2<|im_end|>\n");
    assert.equal(
      prompt,
      "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nu1<|im_end|>\n<|im_start|>assistant\n<|im_start|>user\nu2<|im_end|>\n<|im_start|>assistant\n",
    );
  });

  test("a vocabulary larger than the model's", async () => {
    const path = await fileOf([{ instruction: "a", output: "b" }]);
    await assert.rejects(
      encodeDataset(path, () => rowTemplate(tokenizer, { name: "auto", system: null }), { ...limits, vocabSize: 257 }),
      fails("PL_TOKENIZER_INVALID", /row 1 has token id 257/),
    );
  });

  const data = shared("data/huanhuan.json");
  const model = shared("data/qwen-7b-chat");
  const golden = shared("goldens/tokens/huanhuan.json");
  test("all 3,729 rows of the tutorial", { skip: data === null || model === null || golden === null }, async () => {
    const expected = JSON.parse(readFileSync(golden!, "utf8")) as {
      stats: Record<string, number>;
      sha256: string;
      first: { input_ids: number[]; labels: number[] }[];
    };
    const qwen = await loadTokenizer(model!);
    const dataset = await encodeDataset(data!, () => rowTemplate(qwen, { name: "auto", system: null }), {
      maxLength: 384,
      vocabSize: 151936,
    });
    expected.first.forEach(({ input_ids, labels }, row) => {
      assert.deepEqual([...dataset.row(row).tokens], input_ids);
      assert.deepEqual([...dataset.row(row).labels], labels);
    });
    const { rows, totalTokens, labelTokens, min, median, p99, max, truncated } = dataset.statistics;
    assert.deepEqual(
      { rows, total_tokens: totalTokens, label_tokens: labelTokens, min, median, p99, max, truncated },
      expected.stats,
    );
    const lines = Array.from({ length: dataset.size }, (_, row) => {
      const { tokens, labels } = dataset.row(row);
      return `${tokens.join(",")}|${labels.join(",")}`;
    });
    assert.equal(createHash("sha256").update(lines.join("\n")).digest("hex"), expected.sha256);
  });
});

describe("ready ids", () => {
  test("are taken as they are and cut too; without labels every token is one", async () => {
    const path = await fileOf([{ input_ids: [1, 2, 3], labels: [-100, 2, 3] }, { input_ids: [4, 5, 6, 7] }]);
    const dataset = await encodeDataset(path, noTemplate, { maxLength: 3, vocabSize: 8 });
    assert.deepEqual([...dataset.row(0).labels], [-100, 2, 3]);
    assert.deepEqual([...dataset.row(1).labels], [4, 5, 6]);
    assert.equal(dataset.statistics.truncated, 1);
  });

  test("ids that the model does not know", async () => {
    await assert.rejects(
      encodeDataset(await fileOf([{ input_ids: [1, 2] }, { input_ids: [8] }]), noTemplate, {
        maxLength: 9,
        vocabSize: 8,
      }),
      fails("PL_DATASET_INVALID", /row 2 has token id 8, the model knows 0 … 7/),
    );
    const negative = await fileOf([{ input_ids: [1, 2], labels: [1, -1] }]);
    await assert.rejects(
      encodeDataset(negative, noTemplate, { maxLength: 9, vocabSize: 8 }),
      fails("PL_DATASET_INVALID", /id -1/),
    );
  });

  test("nothing left to train on", async () => {
    const masked = await fileOf([{ input_ids: [1, 2], labels: [1, -100] }, { input_ids: [3] }]);
    await assert.rejects(
      encodeDataset(masked, noTemplate, { maxLength: 9, vocabSize: 8 }),
      fails("PL_DATASET_INVALID", /no token of any of the 2 rows is trained on/),
    );
  });
});

describe("chat templates", () => {
  const template =
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}[{{ m.role }}]{{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
  async function tokenizerWith(chatTemplate: string | null): Promise<Tokenizer> {
    const dir = await mkdtemp(join(tmpdir(), "pipelora-template-"));
    await cp(fixture("tokens/tokenizer.json"), join(dir, "tokenizer.json"));
    const config = JSON.parse(readFileSync(fixture("tokens/tokenizer_config.json"), "utf8")) as object;
    await writeFile(join(dir, "tokenizer_config.json"), JSON.stringify({ ...config, chat_template: chatTemplate }));
    return loadTokenizer(dir);
  }
  const row = { kind: "instruction", instruction: "Tom said", input: "hello", output: "Lily ran" } as const;
  const encode = (source: RowTemplate) => source.encodeInstruction(row);

  test("labels are the assistant's turns and what ends them", async () => {
    const tokenizer = await tokenizerWith(template);
    const { tokens, labels } = encode(rowTemplate(tokenizer, { name: "auto", system: "Be kind" }));
    const { prompt, trained } = shown(tokenizer, tokens, labels);
    assert.equal(prompt, "<s>[system]Be kind[user]Tom said\nhello[assistant]");
    assert.match(trained, /^Lily ran<\/s>$/);
    assert.equal(tokens[0], tokenizer.bosId);
    assert.deepEqual(
      rowTemplate(tokenizer, { name: "auto", system: "Be kind" }).encodePrompt([
        { role: "user", content: "Tom said\nhello" },
      ]),
      tokens.slice(
        0,
        labels.findIndex((label) => label !== -100),
      ),
    );
  });

  test("each turn of a longer conversation", async () => {
    const tokenizer = await tokenizerWith(template);
    const { tokens, labels } = rowTemplate(tokenizer, { name: "chat", system: null }).encodeMessages([
      { role: "user", content: "one" },
      { role: "assistant", content: "two" },
      { role: "user", content: "three" },
      { role: "assistant", content: "four" },
    ]);
    assert.equal(shown(tokenizer, tokens, labels).trained, "two</s>four</s>");
  });

  test("templates that are missing, broken or raise", async () => {
    const without = await tokenizerWith(null);
    for (const name of ["auto", "chat"] as const) {
      const made = rowTemplate(without, { name, system: null });
      for (const chat of [() => made.requireChat(), () => encode(made), () => made.encodePrompt([])])
        assert.throws(chat, fails("PL_TEMPLATE_INVALID", /no chat template/));
      // What a base model is trained on needs none.
      assert.deepEqual(made.encodeText("one").labels, made.encodeText("one").tokens);
      assert.equal(made.encodeSegments([{ text: "one", label: true }]).tokens.length > 0, true);
    }
    const broken = await tokenizerWith("{% for %}");
    assert.throws(
      () => rowTemplate(broken, { name: "auto", system: null }),
      fails("PL_TEMPLATE_INVALID", /can't be parsed/),
    );
    const raising = await tokenizerWith("{{ raise_exception('roles must alternate') }}");
    assert.throws(
      () => encode(rowTemplate(raising, { name: "auto", system: null })),
      fails("PL_TEMPLATE_INVALID", /roles must alternate/),
    );
    const path = await fileOf([{ instruction: "a", output: "b" }]);
    await assert.rejects(
      encodeDataset(path, () => rowTemplate(raising, { name: "auto", system: null }), limits),
      fails("PL_TEMPLATE_INVALID", /row 1: .*roles must alternate/),
    );
  });
});
