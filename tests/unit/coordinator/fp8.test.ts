import assert from "node:assert/strict";
import { test } from "node:test";
import { fp8Warning } from "../../../src/coordinator/planning/fp8.ts";
import type { Device } from "../../../src/plan/devices.ts";
import { cpus, gpus, model } from "../plan/models.ts";

const qwen = model("qwen-7b");
const capable = (capability: readonly [number, number] | null): Device[] =>
  gpus(2).map((device, id) => ({ ...device, ...(capability === null || id === 0 ? {} : { capability }) }));

test("Ada, Hopper and Blackwell multiply e4m3 numbers; a GPU that is not known is believed", () => {
  for (const capability of [[8, 9], [9, 0], [10, 0], [12, 0], null] as const)
    assert.equal(fp8Warning(capable(capability), "bfloat16", qwen), null);
});

test("older GPUs and CPUs are refused by name, float32 by its reason", () => {
  for (const capability of [
    [8, 6],
    [8, 0],
    [7, 5],
  ] as const) {
    assert.throws(() => fp8Warning(capable(capability), "bfloat16", qwen), {
      code: "PL_DEVICE_UNAVAILABLE",
      message: new RegExp(`NVIDIA H100 80GB HBM3 of compute capability ${capability.join("\\.")}`),
    });
  }
  assert.throws(() => fp8Warning([...capable([9, 0]), ...cpus(1)], "bfloat16", qwen), {
    code: "PL_DEVICE_UNAVAILABLE",
    message: /a CPU/,
  });
  assert.throws(() => fp8Warning(capable([9, 0]), "float32", qwen), { code: "PL_CONFIG_INVALID" });
});

test("experts multiply e4m3 numbers too, but for those whose widths do not suit, which are counted and named", () => {
  const shape = {
    hidden_size: 512,
    intermediate_size: 1024,
    num_hidden_layers: 3,
    num_attention_heads: 8,
    vocab_size: 999,
  };
  assert.equal(fp8Warning(capable([9, 0]), "bfloat16", model("qwen3-moe", shape)), null);
  assert.equal(fp8Warning(capable([8, 9]), "bfloat16", model("gpt-oss", shape)), null);
  // Two blocks of 16 experts of three linears each, and one without; seven linears elsewhere in it, four in those.
  const odd = model("qwen3-moe", { ...shape, moe_intermediate_size: 120 });
  assert.match(
    fp8Warning(capable([9, 0]), "bfloat16", odd)!,
    /^--fp8: 96 of 111 linears stay in bfloat16.*experts\.0\.gate_proj is 120 x 512$/,
  );
});

test("widths that do not suit are said once", () => {
  const layers = qwen.layers.map((layer) =>
    layer.kind === "block"
      ? { ...layer, linears: layer.linears.map((linear) => (linear.role === "down" ? { ...linear, in: 100 } : linear)) }
      : layer,
  );
  assert.match(
    fp8Warning(capable([9, 0]), "bfloat16", { layers })!,
    /^--fp8: 32 of 160 linears stay in bfloat16.*mlp\.c_proj is 4096 x 100$/,
  );
});
