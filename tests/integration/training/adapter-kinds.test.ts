import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import type { LoraSettings } from "../../../src/common/lora-settings.ts";
import type { Engine } from "../../../src/engine/index.ts";
import { openSafetensors } from "../../../src/formats/safetensors.ts";
import { distance } from "../../support/models/distance.ts";
import { goldenRun } from "../../support/models/golden.ts";
import { adaptedModel, lastLogits, meanLossBatch, wholeModel } from "../../support/models/one-engine.ts";
import { coordinator, events, temporaryFolder } from "../../support/processes/cli.ts";

const IDS = [3, 17, 41, 8, 29, 3, 44, 12, 5, 36, 21, 9, 48, 0, 7];

async function succeed(args: string[]): Promise<string> {
  const result = await coordinator([...args, "--log-level", "warn"]);
  assert.equal(result.code, 0, result.stderr);
  return result.stdout;
}

for (const name of ["dora", "modules-to-save", "lora-embeddings"]) {
  test(`${name}: the merged model has the adapter's logits`, async (t) => {
    const { folder } = goldenRun(name);
    const merged = join(temporaryFolder(t), "merged");
    const [model, adapter] = [join(folder, "model"), join(folder, "adapter_final")];
    await succeed(["merge", "--model", model, "--adapter", adapter, "--output-dir", merged]);
    const logits = async (engine: Engine) => {
      const values = await lastLogits(engine, IDS);
      await engine.close();
      return values;
    };
    const expected = await logits(await wholeModel(model, adapter));
    assert.ok(distance(await logits(await wholeModel(model, null)), expected) > 1e-2);
    assert.ok(distance(await logits(await wholeModel(merged, null)), expected) < 1e-5);
  });
}

/** Whatever may be trained together, on a model with biases (tied) and on one whose ends are apart. */
const MIXTURES: Record<
  string,
  { readonly model: string; readonly settings: Partial<LoraSettings>; readonly kinds: number }
> = {
  "DoRA and all biases": {
    model: "dora",
    settings: { useDora: true, bias: "all", targetModules: ["q_proj", "up_proj", "down_proj"] },
    kinds: 5,
  },
  "DoRA with dropout, on the head too": {
    model: "modules-to-save",
    settings: {
      useDora: true,
      dropout: 0.2,
      targetModules: ["q_proj", "k_proj", "o_proj", "up_proj", "down_proj", "lm_head"],
    },
    kinds: 3,
  },
  "DoRA with dropout on a shared expert and its gate": {
    model: "qwen3-next",
    settings: {
      useDora: true,
      dropout: 0.2,
      targetModules: ["shared_expert_gate", "up_proj", "down_proj"],
    },
    kinds: 3,
  },
  "biases of adapted layers alone": {
    model: "dora",
    settings: { bias: "lora_only", targetModules: ["v_proj"] },
    kinds: 3,
  },
  "rows of tokens and a pair on the head": {
    model: "modules-to-save",
    settings: { trainableTokenIndices: [44, 3, 7], targetModules: ["o_proj", "lm_head"] },
    kinds: 3,
  },
  "rows of tokens that a tied head has too": {
    model: "dora",
    settings: { trainableTokenIndices: [44, 3, 5, 6, 7], targetModules: ["v_proj"] },
    kinds: 3,
  },
  "DoRA on the embedding, with dropout elsewhere": {
    model: "modules-to-save",
    settings: { useDora: true, dropout: 0.1, targetModules: ["embed_tokens", "q_proj"] },
    kinds: 5,
  },
  "DoRA on the head, the embedding whole": {
    model: "modules-to-save",
    settings: { useDora: true, modulesToSave: ["embed_tokens"], targetModules: ["k_proj", "gate_proj", "lm_head"] },
    kinds: 4,
  },
};

for (const [what, { model, settings, kinds }] of Object.entries(MIXTURES)) {
  test(`${what}: gradients are the slopes of the loss`, async () => {
    const engine = await adaptedModel(join(goldenRun(model).folder, "model"), settings);
    const names = await engine.matrixNames();
    const kind = (name: string) => name.replace(/^.*?\.(lora_|base_layer|token_adapter|bias$|weight$)/, "$1");
    assert.equal(new Set(names.map(kind)).size, kinds, names.map(kind).join(" "));
    const batch = (index: number, training: boolean) => ({
      ...{ ...meanLossBatch([{ input_ids: IDS, labels: IDS }], training), index },
      lossScale: 4,
    });
    // Off their first values, where B is zero and gains are one. Magnitudes and tables keep their size.
    let state = 7;
    const draw = () => {
      state = (state * 16807) % 2147483647;
      return state / 2147483647 - 0.5;
    };
    const begun = new Map<string, Float32Array>();
    for (const name of names) {
      const values = await engine.getMatrix(name, "weight");
      begun.set(
        name,
        values.map((value) => value * (1 + 0.2 * draw()) + 0.05 * draw()),
      );
    }
    const setAll = async () => {
      for (const [name, values] of begun) await engine.setMatrix(name, "weight", values);
    };
    await setAll();
    // Norms count as constants (DoRA): as they change, magnitudes go with them. First values are those of magnitudes, and of biases and rows.
    const isPair = (name: string) => /lora_(embedding_)?[AB]/.test(name);
    const followers = names.filter((name) => !isPair(name));
    const normsOf = async () => {
      await engine.firstValues();
      return Promise.all(followers.map((name) => engine.getMatrix(name, "weight")));
    };
    const norms = await normsOf();
    await setAll();
    const keepGains = async () => {
      const now = await normsOf();
      for (const [index, name] of followers.entries()) {
        const scaled = begun.get(name)!.map((value, at) => (value * now[index]![at]!) / norms[index]![at]!);
        await engine.setMatrix(name, "weight", /magnitude/.test(name) ? scaled : begun.get(name)!);
      }
    };
    // Masks are of the row and the step, not of the micro-batch.
    const loss = async () => {
      const { lossSum } = await engine.forward(0, batch(1, (settings.dropout ?? 0) > 0), null);
      await engine.discard();
      return lossSum;
    };
    await engine.forward(0, batch(0, true), null);
    await engine.backward(0, 0, null);
    // What the head learns it learns as the loss is made.
    const gradients = await Promise.all(names.map((name) => engine.getMatrix(name, "grad")));
    for (const [index, name] of names.entries()) {
      const gradient = gradients[index]!;
      const most = gradient.reduce((best, value, at) => (Math.abs(value) > Math.abs(gradient[best]!) ? at : best), 0);
      assert.ok(Math.abs(gradient[most]!) > 0, `${name} gets no gradient`);
      const values = await engine.getMatrix(name, "weight");
      const by = 0.02 * Math.max(0.05, Math.abs(values[most]!));
      const lossAt = async (value: number) => {
        await engine.setMatrix(name, "weight", values.with(most, value));
        if (settings.useDora && isPair(name)) await keepGains();
        return loss();
      };
      const slope = (4 * ((await lossAt(values[most]! + by)) - (await lossAt(values[most]! - by)))) / (2 * by);
      await setAll();
      assert.ok(
        Math.abs(gradient[most]! - slope) < 0.02 * Math.abs(slope) + 1e-3,
        `${name}[${most}]: ${gradient[most]}, slope ${slope}`,
      );
    }
    await engine.close();
  });
}

test("a new adapter of many kinds: the same bits over 1 and 2 workers and resumed, read again, generated with or merged", async (t) => {
  const root = temporaryFolder(t);
  const kinds = [
    [
      "modules-to-save",
      ["--modules-to-save", "lm_head", "--trainable-token-indices", "[5,9,3]", "--loraplus-lr-ratio", "4"],
    ],
    ["dora", ["--trainable-token-indices", "[5,9,3,4]", "--target-modules", "v_proj"]],
    ["modules-to-save", ["--use-dora", "--lora-dropout", "0.1", "--target-modules", "embed_tokens,lm_head,o_proj"]],
  ] as const;
  const one = async ([model, flags]: (typeof kinds)[number], index: number) => {
    const folder = join(root, String(index));
    const golden = goldenRun(model);
    const base = ["--model", join(golden.folder, "model")];
    const train = (name: string, ...more: string[]) =>
      succeed([
        ...["train", ...base, "--dataset", join(golden.folder, "data.jsonl"), "--output-dir", join(folder, name)],
        ...[
          "--lora-r",
          "4",
          "--learning-rate",
          "2e-3",
          "--per-device-train-batch-size",
          "4",
          "--compute-dtype",
          "float32",
        ],
        ...["--save-steps", "2", "--max-steps", "4", ...flags, ...more],
      ]);
    const bytes = (name: string) => readFileSync(join(folder, name, "adapter_model.safetensors"));
    await train("one", "--workers", "1");
    await train("two", "--workers", "2", "--device-map", "balanced", "--gradient-checkpointing");
    assert.deepEqual(bytes("two"), bytes("one"));
    await train("two", "--workers", "1", "--resume-from-checkpoint", join(folder, "two", "checkpoint-2"));
    assert.deepEqual(bytes("two"), bytes("one"));
    const { tensors } = await openSafetensors(join(folder, "one", "adapter_model.safetensors"));
    assert.ok([...tensors.keys()].some((key) => /magnitude_vector$|token_adapter\.trainable_tokens_delta$/.test(key)));
    if (index === 0) {
      const said = JSON.parse(
        await succeed([
          "generate",
          ...base,
          "--adapter",
          join(folder, "one"),
          "--prompt-ids",
          "[5,9,3]",
          "--max-new-tokens",
          "3",
          "--json",
        ]),
      ) as { output_ids: number[] };
      assert.equal(said.output_ids.length, 3);
      return;
    }
    const [modelDir, merged] = [join(golden.folder, "model"), join(folder, "merged")];
    await succeed(["merge", ...base, "--adapter", join(folder, "one"), "--output-dir", merged]);
    const logits = async (engine: Engine) => {
      const values = await lastLogits(engine, [5, 9, 3, 4]);
      await engine.close();
      return values;
    };
    const expected = await logits(await wholeModel(modelDir, join(folder, "one")));
    assert.ok(distance(await logits(await wholeModel(merged, null)), expected) < 1e-5);
    assert.ok(distance(await logits(await wholeModel(modelDir, null)), expected) > 1e-3);
  };
  await Promise.all(kinds.map(one));
});

test("what PiSSA and LoftQ begin with: the base's loss, the same bits resumed, an adapter for the plain base", async (t) => {
  const root = temporaryFolder(t);
  const { folder } = goldenRun("modules-to-save");
  for (const [init, ...more] of [["pissa"], ["loftq", "--load-in-4bit"]]) {
    const at = (name: string) => join(root, init!, name);
    const train = async (name: string, ...flags: string[]) => {
      const output = await succeed([
        ...[
          "train",
          "--model",
          join(folder, "model"),
          "--dataset",
          join(folder, "data.jsonl"),
          "--output-dir",
          at(name),
        ],
        ...[
          "--per-device-train-batch-size",
          "4",
          "--compute-dtype",
          "float32",
          "--train-sampling-strategy",
          "sequential",
        ],
        ...["--max-steps", "3", "--save-steps", "2", "--logging-steps", "1", "--json", ...more, ...flags],
      ]);
      return (events(output, "log") as Record<string, number>[]).slice(0, 3).map(({ loss }) => loss!);
    };
    const lora = [
      "--lora-r",
      "4",
      "--lora-alpha",
      "16",
      "--target-modules",
      "q_proj,o_proj,down_proj",
      "--learning-rate",
      "2e-3",
    ];
    const losses = await train("run", ...lora, "--init-lora-weights", init!, "--workers", "2");
    const bytes = readFileSync(join(at("run"), "adapter_model.safetensors"));
    await train(
      "run",
      ...lora,
      "--init-lora-weights",
      init!,
      "--workers",
      "1",
      "--resume-from-checkpoint",
      join(at("run"), "checkpoint-2"),
    );
    assert.deepEqual(readFileSync(join(at("run"), "adapter_model.safetensors")), bytes);
    const { tensors } = await openSafetensors(join(at("run"), "adapter_model.safetensors"));
    const [first] = [...tensors.values()];
    assert.equal(first!.shape[0], init === "loftq" ? 4 : 8);
    // On the base as it is, the adapter of step 2 has the third step's loss; LoftQ's own beginning is no zero.
    const still = await train("still", "--adapter", join(at("run"), "checkpoint-2"), "--learning-rate", "0");
    assert.ok(Math.abs(still[2]! - losses[2]!) < 1e-5 * losses[2]!, `${init}: ${still[2]}, expected ${losses[2]}`);
    if (init !== "pissa") continue;
    const plain = await train("plain", ...lora);
    assert.ok(Math.abs(losses[0]! - plain[0]!) < 1e-5 * plain[0]!, `${init}: ${losses[0]}, ${plain[0]}`);
    assert.notEqual(losses[1], plain[1]);
  }
});
