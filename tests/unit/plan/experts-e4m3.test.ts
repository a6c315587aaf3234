import assert from "node:assert/strict";
import { test } from "node:test";
import type { BlockLayer } from "../../../src/models/spec.ts";
import { type Holding, predictTime } from "../../../src/plan/index.ts";
import { type ExpertWeights, expertProducts, expertWeights } from "../../../src/plan/memory/expert-memory.ts";
import { expandedBytes, expansionBytes, heldAllocations } from "../../../src/plan/memory/gpu-weights.ts";
import { gpuExpertWork } from "../../../src/plan/memory/gpu-work.ts";
import { everyExpert, everyLinear, gpus, model, NF4, PLAIN, request, WORK } from "./models.ts";

const KINDS = ["qwen3-moe", "qwen2-moe", "glm4-moe", "gpt-oss"] as const;
const SHAPE = { hidden_size: 512, intermediate_size: 1024, num_hidden_layers: 4, num_attention_heads: 8 };
const inE4m3 = (holding: Holding): Holding => ({ ...holding, fp8: true });
const INT8: Holding = { ...PLAIN, quantization: { method: "8bit" } };

const mixtureOf = (spec: ReturnType<typeof model>): BlockLayer =>
  spec.layers.find((layer): layer is BlockLayer => layer.kind === "block" && layer.experts !== undefined)!;
const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);

function weightsOf(block: BlockLayer, holding: Holding): ExpertWeights[] {
  return expertProducts(block, [], holding).map((product) => expertWeights(product, block.experts!.count, "bfloat16"));
}

test("experts in e4m3: two copies in the bytes of one in 16 bits, a scale an output and an expert's input", () => {
  for (const kind of KINDS) {
    const block = mixtureOf(model(kind, { ...SHAPE, vocab_size: 999 }));
    const { linears, count } = block.experts!;
    for (const holding of [PLAIN, NF4, INT8]) {
      const own = weightsOf(block, inE4m3(holding));
      for (const [index, { product, count: weights }] of own.entries()) {
        const what = `${kind}, ${holding.quantization.method}, product ${index}`;
        const elements = product.in * product.out;
        assert.ok(product.e4m3, what);
        assert.equal(
          elements * weights,
          count * sum(linears.filter(({ role }) => (role === "down") === (index === 1)).map((l) => l.in * l.out)),
        );
        assert.equal(expandedBytes(product, "bfloat16"), 2 * elements, what);
        const scales = 4 * (product.out + (count / weights) * product.in);
        const plain = { ...product, e4m3: false };
        const beside = heldAllocations(product, inE4m3(holding), "bfloat16");
        assert.ok(beside.includes(scales), what);
        // Quantised experts are held as without, and the scales; others as both copies alone.
        const held = product.quantized ? sum(heldAllocations(plain, holding, "bfloat16")) : 2 * elements;
        const bias = product.bias && !product.quantized ? 2 * product.out : 0;
        assert.equal(sum(beside), held + bias + scales, what);
      }
      // Places of the pool: a forward and a backward one for each product; what comes unquantised lies there as it comes.
      const products = own.map(({ product }) => product);
      const quantized = products.every((product) => product.quantized);
      const expected = quantized
        ? sum(products.map((product) => 2 * product.in * product.out))
        : sum(
            products.map(
              (product) => heldAllocations({ ...product, e4m3: false, bias: false }, holding, "bfloat16")[0]!,
            ),
          );
      assert.equal(expansionBytes(products, inE4m3(holding), "bfloat16"), expected, kind);
    }
  }
});

test("experts whose widths do not suit stay as they are, each product by itself", () => {
  const block = mixtureOf(model("qwen3-moe", { ...SHAPE, vocab_size: 999 }));
  const { experts } = block;
  for (const odd of [8, 24, 100]) {
    const linears = experts!.linears.map((linear) => (linear.role === "down" ? linear : { ...linear, out: odd }));
    const [gateUp, down] = expertProducts({ ...block, experts: { ...experts!, linears } }, [], inE4m3(NF4));
    assert.ok(!gateUp!.e4m3 && down!.e4m3);
  }
});

test("work: codes and scales of every chosen row, beside LoRA's", () => {
  const spec = model("qwen3-moe", { ...SHAPE, vocab_size: 999 });
  const block = mixtureOf(spec);
  const layer = spec.layers.indexOf(block);
  for (const tokens of [1, 77, 4096])
    for (const pairs of [[], everyExpert(spec, 16, []).filter((pair) => pair.layer === layer)]) {
      const work = (holding: Holding) =>
        gpuExpertWork(expertProducts(block, pairs, holding), block.experts, false, 2, tokens);
      const rows = tokens * block.experts!.router.chosen;
      const widest = Math.max(...block.experts!.linears.map((linear) => Math.max(linear.in, linear.out)));
      const [plain, eight] = [work(NF4), work(inE4m3(NF4))];
      assert.ok(eight >= rows * (widest + 4), `${tokens}: ${eight}`);
      assert.ok(pairs.length === 0 || eight >= plain, `${tokens}: ${eight}, ${plain}`);
    }
});

test("time: experts in e4m3 take less on Hopper, and what they multiply decides how much", () => {
  const shape = { hidden_size: 2048, intermediate_size: 6144, num_hidden_layers: 4, num_attention_heads: 32 };
  const moe = { num_experts: 128, num_experts_per_tok: 8, moe_intermediate_size: 768, mlp_only_layers: [] };
  const spec = model("qwen3-moe", { ...shape, ...moe, vocab_size: 32_000 });
  const odd = model("qwen3-moe", { ...shape, ...moe, moe_intermediate_size: 760, vocab_size: 32_000 });
  const devices = gpus(1).map((device) => ({ ...device, capability: [9, 0] as const }));
  const work = { ...WORK, microBatches: 1, tokens: 3072, labelTokens: 3072, meanTokens: 3072, meanLabelTokens: 3072 };
  const seconds = (of: typeof spec, holding: Holding) => {
    const asked = request(of, devices, { holding, lora: everyLinear(of), work });
    const whole = { index: 0, devices: [0], ranks: [0], firstLayer: 0, lastLayer: of.layers.length - 1 };
    return predictTime(asked, [whole], [{ offloaded: 0, checkpointed: 0, cached: 0 }]).step;
  };
  const [bf16, e4m3] = [seconds(spec, PLAIN), seconds(spec, inE4m3(PLAIN))];
  assert.ok(e4m3 < 0.9 * bf16, `${e4m3} and ${bf16}`);
  const [oddBf16, oddE4m3] = [seconds(odd, PLAIN), seconds(odd, inE4m3(PLAIN))];
  assert.ok(oddBf16 - oddE4m3 < (bf16 - e4m3) / 2, "760 is no multiple of 16");
});
