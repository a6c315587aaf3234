import assert from "node:assert/strict";
import { mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import type { PipeloraError } from "../../../src/common/errors.ts";
import { readJsonValues } from "../../../src/data/readers/json-stream.ts";
import { readRows } from "../../../src/data/readers/read.ts";
import type { Row } from "../../../src/data/readers/rows.ts";
import { fixture } from "../shared-data.ts";

const folder = await mkdtemp(join(tmpdir(), "pipelora-readers-"));
let files = 0;
async function fileOf(content: string | Uint8Array, extension = "json"): Promise<string> {
  const path = join(folder, `${files++}.${extension}`);
  await writeFile(path, content);
  return path;
}
async function all<T>(values: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const value of values) found.push(value);
  return found;
}
const rowsOf = async (content: string | Uint8Array, extension = "json") =>
  all(readRows(await fileOf(content, extension)));
const refuses = (content: string | Uint8Array, message: RegExp, extension = "json", hint = /./) =>
  assert.rejects(rowsOf(content, extension), (error: PipeloraError) => {
    assert.equal(error.code, "PL_DATASET_INVALID", error.message);
    assert.match(error.message, message);
    assert.match(error.hint ?? "", hint);
    return true;
  });
const instruction = (text: string, input = "", output = "o"): Row => ({
  kind: "instruction",
  instruction: text,
  input,
  output,
});

describe("dataset readers", () => {
  test("JSON list, JSON lines, CSV: the same rows", async () => {
    const rows = [
      { instruction: 'a, "b"\n你好', input: "", output: "o" },
      { instruction: "[{", input: "x\\", output: "o" },
    ];
    const expected = [instruction('a, "b"\n你好'), instruction("[{", "x\\")];
    assert.deepEqual(await rowsOf(JSON.stringify(rows, null, 4)), expected);
    assert.deepEqual(await rowsOf(rows.map((row) => `${JSON.stringify(row)}\r\n\n`).join(""), "jsonl"), expected);
    assert.deepEqual(await rowsOf(rows.map((row) => JSON.stringify(row)).join("\n"), "json"), expected);
    assert.deepEqual(await rowsOf('instruction,input,output\n"a, ""b""\n你好",,o\n[{,x\\,o\n', "csv"), expected);
    assert.deepEqual(await rowsOf(`\ufeff${JSON.stringify(rows)}`), expected);
  });

  test("gzip and tabs: the same rows", async () => {
    const rows = [instruction('a\t"b"'), instruction("c", "d")];
    const lines = rows.map(({ kind: _, ...row }) => JSON.stringify(row)).join("\n");
    const tabs = 'instruction\tinput\toutput\n"a\t""b"""\t\to\nc\td\to\n';
    assert.deepEqual(await rowsOf(gzipSync(lines), "jsonl.gz"), rows);
    assert.deepEqual(await rowsOf(gzipSync(`[${lines.replace("\n", ",")}]`), "json.gz"), rows);
    assert.deepEqual(await rowsOf(tabs, "tsv"), rows);
    assert.deepEqual(await rowsOf(gzipSync(tabs), "tsv.gz"), rows);
    await refuses(gzipSync(lines).subarray(0, 40), /can't be unpacked/, "jsonl.gz");
    await refuses(lines, /can't be unpacked/, "jsonl.gz");
    await refuses("a\tb\nc\n", /not a TSV table/, "tsv");
  });

  test("Zstandard: one frame, several, blocks of repeats; cut off or another format is refused", async () => {
    const rows = [instruction('a\t"b"'), instruction("c", "d")];
    // Of the zstd program: -19; two frames, the second without a checksum; 20,000 equal rows.
    const one = "KLUv/QRozQEA8kIKEbC5GMe75MaoWURjkdUzsIgBpoB16ubhxboH7/BGNrWxGPO0LNKEtwoEAFB1ecq4ViGSD6UMikl46w==";
    const two =
      "KLUv/QRYmQEAeyJpbnN0cnVjdGlvbiI6ImFcdFwiYlwiIiwiaW5wdXQiOiIiLCJvdXRwdXQiOiJvIn0KIbae1ii1L/0AWGEBAHsiaW5zdHJ1Y3Rpb24iOiJjIiwiaW5wdXQiOiJkIiwib3V0cHV0IjoibyJ9";
    const equal =
      "KLUv/QRodAEARAJ7Imluc3RydWN0aW9uIjogInEiLCAib3V0cHV0IjogIm8ifQoBAMz+P7l6AkQAAAABAP3/J1dARAAAAAEA/f85AAJEAAAAAQD9/zkAAkQAAAABAP3/OQACRQAAAAEAfXwdAAHBlWTN";
    const of = (text: string) => Buffer.from(text, "base64");
    assert.deepEqual(await rowsOf(of(one), "jsonl.zst"), rows);
    assert.deepEqual(await rowsOf(of(two), "ndjson.zst"), rows);
    assert.equal((await rowsOf(of(equal), "jsonl.zst")).length, 20_000);
    for (const length of [0, 3, 10, of(one).length - 6]) {
      await refuses(of(one).subarray(0, length), /can't be unpacked|has no rows/, "jsonl.zst");
    }
    await refuses('{"instruction": "a", "output": "b"}', /can't be unpacked/, "jsonl.zst");
    await refuses(of(one), /no dataset's extension/, "parquet.zst");
  });

  test("columns under other names, in any kind of file", async () => {
    const columns = { instruction: "q", input: "more", output: "a" };
    const of = async (content: string, extension: string) => all(readRows(await fileOf(content, extension), columns));
    // What stands under our name and is not asked for gives way.
    const row = { q: "x", a: "y", output: "not this" };
    for (const [content, extension] of [
      [JSON.stringify([row]), "json"],
      [JSON.stringify(row), "jsonl"],
      ["q,a,output\nx,y,not this\n", "csv"],
      ["q\ta\toutput\nx\ty\tnot this\n", "tsv"],
    ] as const) {
      assert.deepEqual(await of(content, extension), [instruction("x", "", "y")], extension);
    }
    await assert.rejects(of(JSON.stringify([row, { q: "x" }]), "json"), /row 2 has no column "a"; it has "q"/);
    const parquet = all(readRows(fixture("data/ids.parquet"), { input_ids: "labels" }));
    assert.deepEqual((await parquet)[0], { kind: "ids", inputIds: [-100, 2, 3], labels: null, weights: null });
    const ids = await fileOf('tokens\n"[1, 2]"\n', "csv");
    assert.deepEqual(await all(readRows(ids, { input_ids: "tokens" })), [
      { kind: "ids", inputIds: [1, 2], labels: null, weights: null },
    ]);
  });

  test("a pointer of Git LFS is named as one", async () => {
    const pointer = `version https://git-lfs.github.com/spec/v1\noid sha256:${"0".repeat(64)}\nsize 9\n`;
    for (const extension of ["parquet", "jsonl", "csv", "jsonl.gz"]) {
      await refuses(pointer, /pointer of Git LFS.*"git lfs pull"/, extension);
    }
  });

  test("Parquet, several row groups, absent inputs", async () => {
    const rows = await all(readRows(fixture("data/instructions.parquet")));
    assert.equal(rows.length, 6);
    assert.deepEqual(rows[5], instruction("问题 5", "", "答案 5"));
    assert.deepEqual(await all(readRows(fixture("data/ids.parquet"))), [
      { kind: "ids", inputIds: [1, 2, 3], labels: [-100, 2, 3], weights: null },
      { kind: "ids", inputIds: [4, 5], labels: [-100, 5], weights: null },
    ]);
    await refuses("not parquet", /can't be read as Parquet/, "parquet");
  });

  test("messages and ready ids", async () => {
    const messages = [
      { role: "system", content: "s" },
      { role: "user", content: "u" },
      { role: "assistant", content: "a" },
    ];
    assert.deepEqual(await rowsOf(JSON.stringify([{ messages, id: 3, tools: [] }])), [
      { kind: "messages", messages, tools: null },
    ]);
    assert.deepEqual(
      await rowsOf('{"input_ids": [1, 2]}\n{"input_ids": [3], "labels": [-100], "attention_mask": [1]}', "jsonl"),
      [
        { kind: "ids", inputIds: [1, 2], labels: null, weights: null },
        { kind: "ids", inputIds: [3], labels: [-100], weights: null },
      ],
    );
    assert.deepEqual(await rowsOf('input_ids,labels\n"[1, 2]","[-100, 2]"\n', "csv"), [
      { kind: "ids", inputIds: [1, 2], labels: [-100, 2], weights: null },
    ]);
  });

  test("values are cut out right wherever chunks end", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.jsonValue(), { maxLength: 12 }), fc.constantFrom(0, 2), async (values, indent) => {
        const text = JSON.stringify(values, null, indent);
        // JSON has no -0: what is expected is what the text says.
        assert.deepEqual(await all(readJsonValues(await fileOf(text))), JSON.parse(text));
      }),
      { numRuns: 60 },
    );
    const long = [{ text: "宽".repeat(700_000) }, { text: `"\\${"x".repeat(1 << 20)}` }, 3];
    assert.deepEqual(await all(readJsonValues(await fileOf(JSON.stringify(long)))), long);
    const lines = long.map((value) => JSON.stringify(value)).slice(0, 2);
    assert.deepEqual(await all(readJsonValues(await fileOf(lines.join("\n")))), long.slice(0, 2));
  });

  test("wrong keys: row, key and the nearest one", async () => {
    const good = { instruction: "a", output: "b" };
    await refuses(
      JSON.stringify([good, { instrution: "a", output: "b" }]),
      /row 2 lacks "instruction".*"instrution"/,
      "json",
      /"instrution" for "instruction"/,
    );
    await refuses(
      JSON.stringify([{ instruction: "a", ouput: "b" }]),
      /row 1 lacks "output"/,
      "json",
      /"ouput" for "output"/,
    );
    await refuses(JSON.stringify([{ question: "a" }]), /lacks "instruction"/, "json", /messages, or input_ids/);
    await refuses(JSON.stringify([{}]), /no keys/);
    await refuses("instrution,output\na,b\n", /row 1 lacks "instruction"/, "csv", /"instrution"/);
    await refuses(JSON.stringify([{ instruction: 3, output: "b" }]), /"instruction" must be text, got 3/);
    await refuses(JSON.stringify([3]), /row 1 is not an object/);
  });

  test("what can't be honoured is refused by name", async () => {
    for (const key of ["images", "image", "audios", "videos", "rejected", "functions"]) {
      await refuses(JSON.stringify([{ instruction: "a", output: "b", [key]: ["x"] }]), new RegExp(`"${key}"`));
    }
    await refuses(JSON.stringify([{ messages: [{ role: "user", content: "u" }], label: false }]), /"label"/);
    await refuses(JSON.stringify([{ instruction: "a", output: "b", history: ["x"] }]), /"history"/);
    await refuses(JSON.stringify([{ messages: [{ role: "user", content: "u" }], tools: 3 }]), /"tools"/);
    await refuses(
      JSON.stringify([{ messages: [{ role: "assistant", content: "u", loss_weight: "half" }] }]),
      /"loss_weight" must be 0 or a number/,
    );
    await refuses(
      JSON.stringify([{ messages: [{ role: "critic", content: "u" }] }]),
      /role must be system, user, assistant, tool, got "critic"/,
    );
    await refuses(
      JSON.stringify([{ messages: [{ role: "user", content: [{ type: "image" }] }] }]),
      /"content" has a part that is no text/,
    );
    await refuses(JSON.stringify([{ messages: [] }]), /"messages" must be a list/);
    await refuses(JSON.stringify([{ input_ids: [1, 2], labels: [1] }]), /1 labels for 2 input_ids/);
    await refuses(JSON.stringify([{ input_ids: [1, 2.5] }]), /"input_ids" must be a list of token ids/);
    for (const loss_weights of [[1], [1, -2], [1, "x"], 3, [1, 1e9]]) {
      await refuses(JSON.stringify([{ input_ids: [1, 2], loss_weights }]), /row 1: "loss_weights"/);
    }
    await refuses(JSON.stringify([{ input_ids: [] }]), /"input_ids" is empty/);
    await refuses(JSON.stringify([{ input_ids: [1, 2], attention_mask: [1, 0] }]), /attention_mask/);
  });

  test("files that are none", async () => {
    await refuses("", /has no rows/);
    await refuses("[]", /has no rows/);
    await refuses("instruction,output\n", /has no rows/, "csv");
    await refuses('[{"instruction": "a", "output": "b"}', /ends inside its list/);
    await refuses('[{"instruction": "a", "output": "b"},]', /comma stands before the closing bracket/);
    await refuses('[{"instruction": "a" "output": "b"}]', /row 1 is not JSON/);
    await refuses('[{"instruction": "a", "output": "b"}] x', /goes on after/);
    await refuses('{\n"instruction": "a"\n}', /row 1 lacks "output"/);
    await refuses("instruction,output\na,b,c\n", /not a CSV table/, "csv");
    await refuses(Buffer.from('[{"instruction": "\xe9", "output": "b"}]', "latin1"), /row 1 is not UTF-8/);
    await refuses(Buffer.from("instruction,output\n\xe9,b\n", "latin1"), /not UTF-8/, "csv");
    await refuses("x", /"\.docx" is no dataset's extension/, "docx");
    await assert.rejects(all(readRows(join(folder, "absent.json"))), /can't be read/);
    await assert.rejects(all(readRows(folder)), { code: "PL_DATASET_INVALID" });
  });
});

test("what is no number in a list of token ids is refused, not read as one", async () => {
  for (const id of ["null", '"9"', "true", "[1]", "1.5", "1e300"]) {
    for (const row of [`{"input_ids": [1, ${id}, 3]}`, `{"input_ids": [1, 2], "labels": [1, ${id}]}`]) {
      await refuses(`[${row}]`, /must be a list of token ids/);
    }
  }
});
