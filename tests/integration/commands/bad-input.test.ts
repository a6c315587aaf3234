import assert from "node:assert/strict";
import { cpSync, existsSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { goldenFlags, goldenRun } from "../../support/models/golden.ts";
import { coordinator, readJson, temporaryFolder } from "../../support/processes/cli.ts";

const golden = goldenRun("qwen1");

interface Case {
  readonly name: string;
  readonly code: string;
  /** What the message must name. */
  readonly says: RegExp;
  /** Changes the model folder (a copy) or the flags. */
  readonly arrange: (model: string, root: string) => string[] | Promise<string[]>;
}

const dataset =
  (content: string | Buffer, name = "data.jsonl") =>
  (_model: string, root: string) => {
    writeFileSync(join(root, name), content);
    return ["--dataset", join(root, name)];
  };
const editConfig = (change: object) => (model: string) => {
  writeFileSync(join(model, "config.json"), JSON.stringify({ ...readJson(model, "config.json"), ...change }));
  return [];
};
const noAdapter = ["--adapter", ""];

const CASES: readonly Case[] = [
  {
    name: "a truncated shard",
    code: "PL_CHECKPOINT_INVALID",
    says: /model\.safetensors/,
    arrange: (model) => {
      truncateSync(join(model, "model.safetensors"), 5000);
      return [];
    },
  },
  {
    name: "an index that names a file outside its folder",
    code: "PL_CHECKPOINT_INVALID",
    says: /\.\.\/other\.safetensors/,
    arrange: (model) => {
      cpSync(join(model, "model.safetensors"), join(model, "..", "other.safetensors"));
      writeFileSync(
        join(model, "model.safetensors.index.json"),
        JSON.stringify({ weight_map: { "lm_head.weight": "../other.safetensors" } }),
      );
      rmSync(join(model, "model.safetensors"));
      return [];
    },
  },
  {
    name: "tensors of other shapes",
    code: "PL_TENSOR_MISMATCH",
    says: /\[320, 64\].*\[320, 128\]|\[320, 128\].*\[320, 64\]|hidden/s,
    arrange: editConfig({ hidden_size: 128, kv_channels: 32 }),
  },
  {
    name: "an unknown architecture",
    code: "PL_MODEL_UNSUPPORTED",
    says: /bert/,
    arrange: editConfig({ model_type: "bert", architectures: ["BertModel"] }),
  },
  { name: "no such model", code: "PL_MODEL_NOT_FOUND", says: /nowhere/, arrange: () => ["--model", "/nowhere"] },
  {
    name: "a misspelt key",
    code: "PL_DATASET_INVALID",
    says: /row 1.*"instrution"/s,
    arrange: dataset('{"instrution":"a","output":"b"}\n'),
  },
  { name: "an empty dataset", code: "PL_DATASET_INVALID", says: /data\.jsonl/, arrange: dataset("") },
  {
    name: "a dataset that is not UTF-8",
    code: "PL_DATASET_INVALID",
    says: /UTF-8/i,
    arrange: dataset(Buffer.from([0x7b, 0xff, 0xfe, 0x7d, 0x0a])),
  },
  {
    name: "labels all masked",
    code: "PL_DATASET_INVALID",
    says: /masked/,
    arrange: dataset('{"input_ids":[1,2,3],"labels":[-100,-100,-100]}\n'),
  },
  {
    name: "ids beyond the vocabulary",
    code: "PL_DATASET_INVALID",
    says: /9999/,
    arrange: dataset('{"input_ids":[1,9999,3]}\n'),
  },
  {
    name: "target modules that match nothing",
    code: "PL_TARGET_MODULES_UNMATCHED",
    says: /c_attn/,
    arrange: () => [...noAdapter, "--target-modules", "c_atn"],
  },
  {
    name: "a device map that leaves a module out",
    code: "PL_DEVICE_MAP_INVALID",
    says: /transformer\.ln_f|lm_head/,
    arrange: (_model, root) => {
      writeFileSync(join(root, "map.json"), JSON.stringify({ "transformer.wte": 0, "transformer.h": 0 }));
      return ["--device-map", join(root, "map.json")];
    },
  },
  {
    name: "a device map that names an unknown device",
    code: "PL_DEVICE_MAP_INVALID",
    says: /7/,
    arrange: (_model, root) => {
      writeFileSync(join(root, "map.json"), JSON.stringify({ "": 7 }));
      return ["--device-map", join(root, "map.json")];
    },
  },
  {
    name: "a device map in place that leaves a module out",
    code: "PL_DEVICE_MAP_INVALID",
    says: /transformer\.wte/,
    arrange: () => ["--device-map", '{"transformer.h": 0, "transformer.ln_f": 0, "lm_head": 0}'],
  },
  {
    name: "a device map in place that is no JSON",
    code: "PL_DEVICE_MAP_INVALID",
    says: /JSON/,
    arrange: () => ["--device-map", '{"": 0'],
  },
  {
    name: "a device map that is no file",
    code: "PL_DEVICE_MAP_INVALID",
    says: /balancd/,
    arrange: () => ["--device-map", "balancd"],
  },
  {
    name: "budgets that can't fit",
    code: "PL_PLACEMENT_INFEASIBLE",
    says: /KiB|B/,
    arrange: () => ["--max-memory", '{"0":"100KB"}'],
  },
  {
    name: "flags that contradict each other",
    code: "PL_CONFIG_INVALID",
    says: /--lora-r contradicts --adapter/,
    arrange: () => ["--lora-r", "4"],
  },
  {
    name: "an unknown flag",
    code: "PL_CONFIG_INVALID",
    says: /--learning-rte.*--learning-rate/,
    arrange: () => ["--learning-rte", "1"],
  },
  {
    name: "an output folder that can't be written",
    code: "PL_OUTPUT_UNWRITABLE",
    says: /blocked/,
    arrange: (_model, root) => {
      writeFileSync(join(root, "blocked"), "a file, no folder");
      return ["--output-dir", join(root, "blocked", "out")];
    },
  },
  {
    name: "an adapter for another model",
    code: "PL_ADAPTER_INVALID",
    says: /another model/,
    arrange: () => ["--adapter", join(goldenRun("qwen2-gqa-tied").folder, "adapter_init")],
  },
];

for (const { name, code, says, arrange } of CASES) {
  test(`${name}: ${code}, before a weight is read`, async (t) => {
    const root = temporaryFolder(t);
    const model = join(root, "model");
    cpSync(join(golden.folder, "model"), model, { recursive: true });
    const output = join(root, "out");
    const changes = await arrange(model, root);
    const flags = withChanges(goldenFlags(golden, output, "--workers", "1"), ["--model", model, ...changes]);
    const result = await coordinator(flags);
    assert.equal(result.code, 1, result.stdout);
    const { error } = JSON.parse(result.stderr.trim().split("\n").at(-1)!) as {
      error: { code: string; message: string; hint: string | null };
    };
    assert.equal(error.code, code, error.message);
    assert.match(`${error.message}\n${error.hint}`, says);
    assert.ok(!existsSync(join(output, "adapter_model.safetensors")));
  });
}

/** Later flags replace earlier ones of the same name; an empty value takes the flag out. */
function withChanges(flags: readonly string[], changes: readonly string[]): string[] {
  const values = new Map<string, string | null>();
  for (const list of [flags, changes]) {
    for (let i = 0; i < list.length; i++) {
      if (!list[i]!.startsWith("--")) continue;
      const value = list[i + 1];
      values.set(list[i]!, value === undefined || value.startsWith("--") ? null : value);
    }
  }
  return [...values].flatMap(([flag, value]) => (value === "" ? [] : value === null ? [flag] : [flag, value]));
}

test("a loss that overflows ends the run with its step and row, and leaves the last checkpoint as it was", async (t) => {
  const output = join(temporaryFolder(t), "out");
  const changes = ["--learning-rate", "1e30", "--max-grad-norm", "0", "--save-strategy", "steps", "--save-steps", "1"];
  const result = await coordinator(withChanges(goldenFlags(golden, output, "--workers", "2"), changes));
  assert.equal(result.code, 1, result.stdout);
  assert.match(result.stderr, /PL_LOSS_NOT_FINITE/);
  assert.match(
    result.stderr,
    /step \d+, micro-batch \d+ \(\d+ rows\): the loss is (NaN|infinite), first at token \d+ of row \d+/,
  );
  assert.match(result.stderr, /Lower the learning rate/);
  assert.ok(existsSync(join(output, "checkpoint-1", "adapter_model.safetensors")));
  assert.ok(!existsSync(join(output, "adapter_model.safetensors")));
});

test("an occupied port", async (t) => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => server.close());
  const { port } = server.address() as { port: number };
  const result = await coordinator(
    goldenFlags(golden, join(temporaryFolder(t), "out"), "--listen", `127.0.0.1:${port}`),
  );
  assert.equal(result.code, 1);
  assert.match(result.stderr, /PL_PORT_UNAVAILABLE/);
});

test("workers that never come", async (t) => {
  const flags = goldenFlags(golden, join(temporaryFolder(t), "out"), "--listen", "127.0.0.1:0", "--join-timeout", "1");
  const result = await coordinator(flags);
  assert.equal(result.code, 75);
  assert.match(result.stderr, /PL_WORKER_MISSING.*nobody/);
});
