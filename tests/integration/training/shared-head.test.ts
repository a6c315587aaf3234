import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { type GoldenRun, goldenFlags, goldenRun } from "../../support/models/golden.ts";
import { coordinator, events, temporaryFolder } from "../../support/processes/cli.ts";

interface Run {
  readonly name: string;
  readonly blocks: readonly number[];
  readonly head: readonly number[];
  readonly flags?: readonly string[];
}

/** The head of each on several devices, in some order; blocks by device, back to one that had some before, or none at all. */
const RUNS: readonly Run[] = [
  { name: "qwen1", blocks: [0, 0, 1, 1], head: [0, 1] },
  { name: "qwen2-gqa-tied", blocks: [0, 1, 0, 1], head: [1, 0], flags: ["--schedule", "interleaved"] },
  { name: "label-smoothing", blocks: [0, 1, 2, 2], head: [2, 0, 1], flags: ["--gradient-checkpointing"] },
  { name: "head-dim-96", blocks: [0, 0, 0, 1], head: [2, 3, 1], flags: ["--schedule", "gpipe"] },
];

function mapOf({ folder }: GoldenRun, { blocks, head }: Run): Record<string, number | readonly number[]> {
  const config = JSON.parse(readFileSync(join(folder, "model/config.json"), "utf8")) as {
    model_type: string;
    num_hidden_layers: number;
  };
  const qwen = config.model_type === "qwen";
  const [root, layers, norm] = qwen ? ["transformer", "h", "ln_f"] : ["model", "layers", "norm"];
  const own = Array.from(
    { length: config.num_hidden_layers },
    (_, block) => blocks[Math.min(block, blocks.length - 1)]!,
  );
  return {
    [root!]: blocks[0]!,
    ...Object.fromEntries(own.map((device, block) => [`${root}.${layers}.${block}`, device])),
    [`${root}.${norm}`]: head,
    lm_head: head,
  };
}

for (const run of RUNS) {
  const workers = 1 + Math.max(...run.blocks, ...run.head);
  test(`${run.name}: a head that ${run.head.length} of ${workers} workers share gives one worker's bits`, async (t) => {
    const golden = goldenRun(run.name);
    const root = temporaryFolder(t);
    const map = join(root, "map.json");
    writeFileSync(map, JSON.stringify(mapOf(golden, run)));
    const over = async (name: string, ...flags: readonly string[]) => {
      const output = join(root, name);
      const held = [
        "--eval-dataset",
        join(golden.folder, "data.jsonl"),
        "--eval-strategy",
        "steps",
        "--eval-steps",
        "2",
        "--max-steps",
        "3",
      ];
      const result = await coordinator(goldenFlags(golden, output, ...held, ...flags));
      assert.equal(result.code, 0, result.stderr);
      return {
        adapter: readFileSync(join(output, "adapter_model.safetensors")),
        told: events(result.stdout, "log").map(({ loss, grad_norm, eval_loss, eval_mean_token_accuracy }) => ({
          ...{ loss, grad_norm, eval_loss, eval_mean_token_accuracy },
        })),
        heads: (
          events(result.stdout, "plan")[0]!["plan"] as { devices: { segments: { last_layer: number }[] }[] }
        ).devices.filter(({ segments }) => segments.some((one) => one.last_layer === layersOf(golden))).length,
      };
    };
    const alone = await over("alone", "--workers", "1");
    const shared = await over("shared", "--workers", String(workers), "--device-map", map, ...(run.flags ?? []));
    assert.equal(shared.heads, run.head.length);
    assert.deepEqual(shared.told, alone.told);
    assert.deepEqual(shared.adapter, alone.adapter);
  });
}

/** Index of the head among the layers: the embedding, the blocks, the norm, the head. */
function layersOf({ folder }: GoldenRun): number {
  const { num_hidden_layers } = JSON.parse(readFileSync(join(folder, "model/config.json"), "utf8")) as {
    num_hidden_layers: number;
  };
  return num_hidden_layers + 2;
}
