import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { openCheckpoint } from "../../../src/formats/checkpoint.ts";
import { openSafetensors, readFloat32 } from "../../../src/formats/safetensors.ts";
import { loadTokenizer } from "../../../src/formats/tokenizer/load.ts";
import { writeGgufModel } from "../../support/models/gguf-models.ts";
import { coordinator, temporaryFolder } from "../../support/processes/cli.ts";

async function succeed(args: string[]): Promise<string> {
  const result = await coordinator([...args, "--log-level", "warn"]);
  assert.equal(result.code, 0, result.stderr);
  return result.stdout;
}

test("new tokens stand behind the vocabulary, begin as the mean, and are trained alone or with the head", async (t) => {
  const root = temporaryFolder(t);
  const { model } = await writeGgufModel(root, "qwen3_5");
  const [list, grown] = [join(root, "tokens.txt"), join(root, "grown")];
  // More than the embedding's spare rows.
  const others = Array.from({ length: 60 }, (_, at) => `<other ${at}>`);
  writeFileSync(list, `<think>\nthe\n</think>\n<think>\r\nfußnote\n${others.join("\n")}\n`);
  const args = ["add-tokens", "--model", model, "--new-tokens", list, "--output-dir", grown, "--json"];
  const made = JSON.parse(await succeed(args)) as { ids: Record<string, number>; rows: [number, number] };
  const before = await loadTokenizer(model);
  const first = before.vocabSize;
  const tokens = ["<think>", "</think>", "fußnote", ...others];
  assert.deepEqual(made.ids, Object.fromEntries(tokens.map((token, at) => [token, first + at])));
  const [old, rows] = made.rows;
  assert.deepEqual([old, rows], [320, first + tokens.length]);
  const config = JSON.parse(readFileSync(join(grown, "config.json"), "utf8")) as Record<string, never>;
  assert.equal((config["text_config"] ?? config)["vocab_size"], rows);

  const tokenizer = await loadTokenizer(grown);
  const text = "and the <think>then</think> in a fußnote.";
  const ids = tokenizer.encode(text);
  assert.deepEqual(
    ids.filter((id) => id >= first),
    [first, first + 1, first + 2],
  );
  assert.equal(tokenizer.decode(ids), text);
  assert.deepEqual(tokenizer.encode("and then in"), before.encode("and then in"));

  const [base, resized] = [await openCheckpoint(model), await openCheckpoint(grown)];
  assert.deepEqual(resized.names, base.names);
  for (const name of base.names) {
    const [was, is] = [base.locate(name), resized.locate(name)];
    const [a, b] = [await readFloat32(was), await readFloat32(is)];
    assert.deepEqual(b.subarray(0, a.length), a, name);
    if (b.length === a.length) continue;
    const columns = is.shape[1]!;
    for (let column = 0; column < columns; column++) {
      let sum = 0;
      for (let row = 0; row < old; row++) sum += a[row * columns + column]!;
      for (let row = old; row < rows; row++) assert.equal(b[row * columns + column], Math.fround(sum / old));
    }
  }

  const data = join(root, "data.jsonl");
  const row = {
    messages: [
      { role: "user", content: "the fußnote" },
      { role: "assistant", content: "<think>an</think> in" },
    ],
  };
  writeFileSync(data, `${JSON.stringify(row)}\n`.repeat(4));
  const trained = join(root, "trained");
  await succeed([
    ...["train", "--model", grown, "--dataset", data, "--output-dir", trained, "--workers", "2", "--max-steps", "2"],
    ...["--target-modules", "q_proj,v_proj", "--modules-to-save", "lm_head", "--learning-rate", "1e-2"],
    ...["--trainable-token-indices", JSON.stringify([first, first + 1, first + 2]), "--compute-dtype", "float32"],
  ]);
  const { tensors } = await openSafetensors(join(trained, "adapter_model.safetensors"));
  const name = [...tensors.keys()].find((key) => key.endsWith("trainable_tokens_delta"))!;
  const deltas = await readFloat32(tensors.get(name)!);
  assert.equal(deltas.length % 3, 0);
  assert.ok(
    [0, 1, 2].every((at) =>
      deltas.subarray((at * deltas.length) / 3, ((at + 1) * deltas.length) / 3).some((x) => x !== 0),
    ),
  );
  assert.ok(JSON.stringify(JSON.parse(readFileSync(join(trained, "tokenizer.json"), "utf8"))).includes("fußnote"));
  const again = await coordinator([
    "add-tokens",
    "--model",
    grown,
    "--new-tokens",
    list,
    "--output-dir",
    join(root, "no"),
  ]);
  assert.equal(again.code, 1);
  assert.match(again.stderr, /has all of these tokens/);
});
