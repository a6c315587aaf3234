import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { rowTemplate } from "../../../src/data/templates.ts";
import { loadTokenizer } from "../../../src/formats/tokenizer/load.ts";
import type { Tokenizer } from "../../../src/formats/tokenizer/tokenizer.ts";
import { encodeDataset } from "../../support/models/encode.ts";
import { mutateBytes, mutatedJson, mutateText, mutateValue } from "../mutate.ts";
import type { FuzzTarget } from "../target.ts";

const ROWS: readonly Record<string, unknown>[] = [
  { instruction: "Say hi", input: "", output: "hi" },
  { instruction: "再说", input: "x", output: "y", system: "s", history: [["a", "b"]] },
  {
    messages: [
      { role: "system", content: "s" },
      { role: "user", content: "hello" },
      { role: "assistant", content: "hello back", train: true, weight: 1 },
    ],
    tools: [{ type: "function", function: { name: "f", parameters: {} } }],
  },
  {
    conversations: [
      { from: "human", value: "q" },
      { from: "gpt", value: "a" },
    ],
  },
  { prompt: "p", completion: "c" },
  { text: "plain text" },
  { input_ids: [1, 2, 3, 4], labels: [-100, 2, 3, 4], attention_mask: [1, 1, 1, 1] },
];
const VOCAB = 512;

let loaded: Promise<Tokenizer> | undefined;
const tokenizer = () => {
  loaded ??= loadTokenizer(join(PACKAGE_ROOT, "tests", "fixtures", "tokens"));
  return loaded;
};

async function encodes(path: string): Promise<void> {
  const known = await tokenizer();
  const template = () => rowTemplate(known, { name: "auto", system: null, now: new Date(0) });
  const dataset = await encodeDataset(path, template, { maxLength: 256, vocabSize: VOCAB });
  for (let row = 0; row < Math.min(dataset.size, 1_000); row++) {
    const { tokens, labels } = dataset.row(row);
    if (tokens.length !== labels.length || tokens.length > 256) throw new Error(`row ${row} has another length`);
    if (!tokens.every((id) => id >= 0 && id < VOCAB)) throw new Error(`row ${row} has ids outside the vocabulary`);
    if (!labels.every((id, at) => id === -100 || (id >= 0 && id < VOCAB && (tokens[at] === id || "free")))) {
      throw new Error(`row ${row} has labels outside the vocabulary`);
    }
  }
}

/** The one file of a folder. */
const FILE = "data";
const extensions = (names: readonly string[]) => async (dir: string) => {
  const { readdirSync } = await import("node:fs");
  const found = readdirSync(dir).find((name) => names.some((extension) => name === FILE + extension));
  await encodes(join(dir, found!));
};

const JSON_NAMES = [".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz"];
const datasetJson: FuzzTarget = {
  name: "dataset-json",
  make(random, dir) {
    const name = random.pick(JSON_NAMES);
    const rows = Array.from({ length: random.between(1, 5) }, () => random.pick(ROWS));
    let bytes: Buffer;
    if (name.startsWith(".json.") || name === ".json") {
      bytes = mutatedJson(random, random.chance(0.3) ? { data: rows } : rows);
    } else {
      const lines = rows.map((row) => JSON.stringify(row));
      lines[random.below(lines.length)] = mutatedJson(random, random.pick(rows)).toString("utf8");
      bytes = Buffer.from(lines.join(random.pick(["\n", "\r\n", "\n\n", "\u2028\n"])));
    }
    if (name.endsWith(".gz")) bytes = gzipSync(bytes);
    writeFileSync(join(dir, FILE + name), random.chance(0.2) ? mutateBytes(random, bytes) : bytes);
  },
  check: extensions(JSON_NAMES),
};

const TABLE_NAMES = [".csv", ".tsv", ".csv.gz", ".tsv.gz"];
const datasetTable: FuzzTarget = {
  name: "dataset-table",
  make(random, dir) {
    const name = random.pick(TABLE_NAMES);
    const delimiter = name.startsWith(".csv") ? "," : "\t";
    const columns = random.pick([
      ["instruction", "input", "output"],
      ["prompt", "completion"],
      ["input_ids", "labels"],
      ["messages"],
      ["text"],
    ]);
    const quoted = (value: unknown) => {
      const text = typeof value === "string" ? value : (JSON.stringify(value) ?? "");
      return random.chance(0.9) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const rows = Array.from({ length: random.between(1, 5) }, () => {
      const source: Record<string, unknown> = Object.assign({}, ...ROWS);
      const row = (random.chance(0.3) ? mutateValue(random, source) : source) as Record<string, unknown> | null;
      return columns.map((column) => quoted(row?.[column]));
    });
    const text = [columns, ...rows].map((row) => row.join(delimiter)).join("\n");
    let bytes = random.chance(0.7) ? mutateText(random, text) : Buffer.from(text);
    if (name.endsWith(".gz")) bytes = gzipSync(bytes);
    writeFileSync(join(dir, FILE + name), random.chance(0.2) ? mutateBytes(random, bytes) : bytes);
  },
  check: extensions(TABLE_NAMES),
};

const PARQUETS = ["ids", "instructions"].map((name) =>
  readFileSync(join(PACKAGE_ROOT, "tests", "fixtures", "data", `${name}.parquet`)),
);
const datasetParquet: FuzzTarget = {
  name: "dataset-parquet",
  make: (random, dir) => writeFileSync(join(dir, `${FILE}.parquet`), mutateBytes(random, random.pick(PARQUETS))),
  check: extensions([".parquet"]),
};

/** Of the zstd program: compressed blocks, raw ones, and 20,000 equal rows in blocks of repeats. */
const ZSTD_FRAMES = [
  "KLUv/QRozQEA8kIKEbC5GMe75MaoWURjkdUzsIgBpoB16ubhxboH7/BGNrWxGPO0LNKEtwoEAFB1ecq4ViGSD6UMikl46w==",
  "KLUv/QRYmQEAeyJpbnN0cnVjdGlvbiI6ImFcdFwiYlwiIiwiaW5wdXQiOiIiLCJvdXRwdXQiOiJvIn0KIbae1ii1L/0AWGEBAHsiaW5zdHJ1Y3Rpb24iOiJjIiwiaW5wdXQiOiJkIiwib3V0cHV0IjoibyJ9",
  "KLUv/QRodAEARAJ7Imluc3RydWN0aW9uIjogInEiLCAib3V0cHV0IjogIm8ifQoBAMz+P7l6AkQAAAABAP3/J1dARAAAAAEA/f85AAJEAAAAAQD9/zkAAkQAAAABAP3/OQACRQAAAAEAfXwdAAHBlWTN",
].map((text) => Buffer.from(text, "base64"));
const datasetZstd: FuzzTarget = {
  name: "dataset-zstd",
  make: (random, dir) => writeFileSync(join(dir, `${FILE}.jsonl.zst`), mutateBytes(random, random.pick(ZSTD_FRAMES))),
  check: extensions([".jsonl.zst"]),
};

export const DATASETS: readonly FuzzTarget[] = [datasetJson, datasetTable, datasetParquet, datasetZstd];
