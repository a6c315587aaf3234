import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeEach, describe, test } from "node:test";
import type { PipeloraError } from "../../../src/common/errors.ts";
import { openCheckpoint, verifyCheckpoint } from "../../../src/formats/checkpoint.ts";
import { parseShardSize, writeCheckpoint } from "../../../src/formats/checkpoint-writer.ts";
import { readTensor, type TensorToWrite } from "../../../src/formats/safetensors.ts";
import { modelSpecFromConfig } from "../../../src/models/index.ts";
import { shared } from "../shared-data.ts";

const spec = modelSpecFromConfig({
  model_type: "llama",
  hidden_size: 8,
  intermediate_size: 16,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  vocab_size: 10,
  tie_word_embeddings: true,
});
const weights = (edit: (tensor: TensorToWrite) => TensorToWrite = (tensor) => tensor): TensorToWrite[] =>
  spec.tensors
    .filter(({ persistent }) => persistent)
    .map(({ name, shape }, i) => {
      const bytes = shape.reduce((product, extent) => product * extent, 4);
      return edit({ name, shape, dtype: "float32", data: () => new Uint8Array(bytes).fill(i) });
    });

let dir = "";
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "pipelora-checkpoint-"));
});
const fails = (code: string, message: RegExp) => (error: PipeloraError) => {
  assert.equal(error.code, code, error.message);
  assert.match(error.message, message);
  return true;
};
const verify = async () => verifyCheckpoint(spec, await openCheckpoint(dir));

describe("checkpoints", () => {
  test("weights saved without the base model's prefix are those with it", async () => {
    const bare = ({ name, ...rest }: TensorToWrite) => ({ ...rest, name: name.replace(/^model\./, "") });
    for (const shardBytes of [undefined, 1024]) {
      await writeCheckpoint(dir, weights(bare), shardBytes);
      const { names } = await openCheckpoint(dir);
      assert.ok(names.includes("model.embed_tokens.weight") && names.includes("model.layers.0.mlp.up_proj.weight"));
      await verify();
      await rm(join(dir, "model.safetensors"), { force: true });
    }
  });

  test("a tied model whose file has the head alone: it is the embedding too", async () => {
    const headOnly = ({ name, ...rest }: TensorToWrite) => ({
      ...rest,
      name: name === "model.embed_tokens.weight" ? "lm_head.weight" : name,
    });
    const bare = (tensor: TensorToWrite) => {
      const { name, ...rest } = headOnly(tensor);
      return { ...rest, name: name.replace(/^model\./, "") };
    };
    for (const edit of [headOnly, bare]) {
      for (const shardBytes of [undefined, 1024]) {
        await writeCheckpoint(dir, weights(edit), shardBytes);
        const checkpoint = await openCheckpoint(dir, spec);
        assert.equal(verifyCheckpoint(spec, checkpoint), 0);
        const untied = await openCheckpoint(dir);
        assert.deepEqual(checkpoint.locate("model.embed_tokens.weight"), untied.locate("lm_head.weight"));
        assert.throws(() => verifyCheckpoint(spec, untied), /embed_tokens.weight is missing/);
        // A rank that holds the embedding alone opens the shard that has the head.
        const some = await openCheckpoint(dir, spec, ["model.embed_tokens.weight"]);
        assert.ok(some.has("model.embed_tokens.weight"));
        await rm(join(dir, "model.safetensors"), { force: true });
      }
    }
  });

  test("one file, or shards with an index: the same tensors", async () => {
    assert.deepEqual(await writeCheckpoint(dir, weights()), ["model.safetensors"]);
    await verify();
    const files = await writeCheckpoint(dir, weights(), 1024);
    assert.equal(files.at(-1), "model.safetensors.index.json");
    assert.match(files[0]!, /^model-00001-of-0000\d\.safetensors$/);
    assert.ok(!(await readdir(dir)).includes("model.safetensors"));
    await verify();
    const checkpoint = await openCheckpoint(dir);
    for (const [i, { name }] of weights().entries()) {
      assert.ok((await readTensor(checkpoint.locate(name))).every((byte) => byte === i));
    }
    const index = JSON.parse(await readFile(join(dir, "model.safetensors.index.json"), "utf8")) as {
      metadata: { total_size: number };
    };
    const parameters = spec.tensors.filter(({ persistent }) => persistent);
    const elements = parameters.reduce(
      (sum, { shape }) => sum + shape.reduce((product, extent) => product * extent, 1),
      0,
    );
    assert.equal(index.metadata.total_size, elements * 4);
  });

  test("shard sizes", () => {
    assert.deepEqual(["5GB", "200MiB", "1.5kb", 77].map(parseShardSize), [5e9, 200 * 2 ** 20, 1500, 77]);
    for (const wrong of ["", "5XB", "-1GB", 0])
      assert.throws(() => parseShardSize(wrong), { code: "PL_CONFIG_INVALID" });
  });

  test("nothing there, and pickles", async () => {
    await assert.rejects(openCheckpoint(dir), fails("PL_MODEL_NOT_FOUND", /neither/));
    await writeFile(join(dir, "pytorch_model.bin"), "");
    await assert.rejects(openCheckpoint(dir), (error: PipeloraError) => /pickle/.test(error.hint ?? ""));
  });

  test("a missing or truncated shard", async () => {
    const files = await writeCheckpoint(dir, weights(), 1024);
    await truncate(join(dir, files[1]!), 300);
    await assert.rejects(openCheckpoint(dir), fails("PL_CHECKPOINT_INVALID", /truncated/));
    await rm(join(dir, files[1]!));
    await assert.rejects(openCheckpoint(dir), fails("PL_MODEL_NOT_FOUND", /model-00002/));
  });

  test("an index that points outside, at nothing, or is none", async () => {
    const files = await writeCheckpoint(dir, weights(), 1024);
    const write = (index: unknown) =>
      writeFile(join(dir, "model.safetensors.index.json"), typeof index === "string" ? index : JSON.stringify(index));
    for (const outside of [
      "../model.safetensors",
      "/etc/x.safetensors",
      "a/b.safetensors",
      "..\\x.safetensors",
      "x.bin",
      "",
    ]) {
      await write({ weight_map: { "model.norm.weight": outside } });
      await assert.rejects(openCheckpoint(dir), fails("PL_CHECKPOINT_INVALID", /no safetensors file of its folder/));
    }
    await write({ weight_map: { "model.nowhere.weight": files[0] } });
    await assert.rejects(openCheckpoint(dir), fails("PL_CHECKPOINT_INVALID", /model\.nowhere\.weight/));
    for (const none of ["{", "[]", { weight_map: {} }, { weight_map: { a: 3 } }]) {
      await write(none);
      await assert.rejects(openCheckpoint(dir), fails("PL_CHECKPOINT_INVALID", /index/));
    }
  });

  test("tensors missing, foreign, of another shape or dtype: all named at once", async () => {
    await writeCheckpoint(dir, weights().slice(2));
    await assert.rejects(
      verify(),
      fails("PL_TENSOR_MISMATCH", /model\.embed_tokens\.weight is missing; model\.layers\.0/),
    );
    await writeCheckpoint(
      dir,
      weights((tensor) => (tensor.name === "model.norm.weight" ? { ...tensor, shape: [2, 4] } : tensor)),
    );
    await assert.rejects(
      verify(),
      fails("PL_TENSOR_MISMATCH", /model\.norm\.weight has shape \[2, 4\], expected \[8\]/),
    );
    await writeCheckpoint(
      dir,
      weights((tensor) => (tensor.name === "model.norm.weight" ? { ...tensor, dtype: "int32" } : tensor)),
    );
    await assert.rejects(verify(), fails("PL_TENSOR_MISMATCH", /int32/));
    const extra: TensorToWrite = {
      name: "model.layers.2.mlp.up_proj.weight",
      shape: [1],
      dtype: "float32",
      data: () => new Uint8Array(4),
    };
    await writeCheckpoint(dir, [...weights(), extra]);
    await assert.rejects(
      verify(),
      fails("PL_TENSOR_MISMATCH", /layers\.2\.mlp\.up_proj\.weight is not part of this model/),
    );
  });

  test("computed buffers and a tied tensor's second name may stand there; halves may mix", async () => {
    const buffer = (name: string): TensorToWrite => ({
      name,
      shape: [2],
      dtype: "float32",
      data: () => new Uint8Array(8),
    });
    const half = weights((tensor) => {
      const bytes = tensor.shape.reduce((product, extent) => product * extent, 2);
      return tensor.name.includes("mlp") ? { ...tensor, dtype: "bfloat16", data: () => new Uint8Array(bytes) } : tensor;
    });
    await writeCheckpoint(dir, [
      ...half,
      buffer("model.layers.0.self_attn.rotary_emb.inv_freq"),
      buffer("lm_head.weight"),
    ]);
    await verify();
  });

  for (const model of ["qwen1", "qwen2-gqa-tied"]) {
    const path = shared(`goldens/training/${model}/model`);
    test(`${model}'s weights fit its configuration`, { skip: path === null }, async () => {
      const { readModelSpec } = await import("../../../src/models/index.ts");
      verifyCheckpoint(await readModelSpec(path!), await openCheckpoint(path!));
    });
  }
});
