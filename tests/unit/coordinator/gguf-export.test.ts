import assert from "node:assert/strict";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { gguf } from "@huggingface/gguf";
import { createLogger } from "../../../src/common/log.ts";
import { loadConfig } from "../../../src/config/load.ts";
import { exportGguf } from "../../../src/coordinator/tools/gguf/export.ts";
import { architectureFor } from "../../../src/coordinator/tools/gguf/fit.ts";
import { ollamaTemplate } from "../../../src/coordinator/tools/gguf/modelfile.ts";
import { preTokenizerName } from "../../../src/coordinator/tools/gguf/pre-tokenizers.ts";
import { layouts } from "../../../src/coordinator/tools/gguf/tensors.ts";
import { CHATML, ChatTemplate } from "../../../src/data/chat-template.ts";
import { loadTokenizer } from "../../../src/formats/tokenizer/load.ts";
import type { Tokenizer } from "../../../src/formats/tokenizer/tokenizer.ts";
import { storedTensors } from "../../../src/models/experts.ts";
import { FAMILIES } from "../../../src/models/families/index.ts";
import { modelSpecFromConfig } from "../../../src/models/index.ts";
import { GGUF_CONFIGS, writeGgufModel } from "../../support/models/gguf-models.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

const LOG = createLogger({ format: "text", level: "silent", fields: {} });
const run = async (output: string, flags: Readonly<Record<string, string | boolean>>) =>
  exportGguf(await loadConfig("export", { output_dir: output, ...flags }), LOG);
const read = async (dir: string) => {
  const path = join(dir, readdirSync(dir).find((name) => name.endsWith(".gguf"))!);
  const { metadata, tensorInfos } = await gguf(path, { allowLocalFile: true });
  return { metadata: metadata as Record<string, unknown>, tensors: tensorInfos };
};

test("every family has an architecture, and each of its tensors goes into the file once", () => {
  const tried = new Set(Object.values(GGUF_CONFIGS).map((config) => config["model_type"]));
  // Those with a vision tower are their text models.
  const towers = ["mistral3", "gemma3", "qwen3_5", "qwen3_5_moe", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"];
  assert.deepEqual(
    Object.keys(FAMILIES).filter((family) => !tried.has(family) && !towers.includes(family)),
    ["llama4_text", "llama4", "granitemoehybrid"],
  );
  const llama4 = modelSpecFromConfig({ ...GGUF_CONFIGS["llama"], model_type: "llama4_text" });
  assert.throws(() => architectureFor(llama4), /PL_MODEL_UNSUPPORTED|no architecture for Llama4ForCausalLM/);
  for (const [name, config] of Object.entries(GGUF_CONFIGS)) {
    const spec = modelSpecFromConfig(config);
    const all = layouts(spec, architectureFor(spec));
    const names = all.map((layout) => layout.name);
    assert.equal(new Set(names).size, names.length, name);
    const aliases = new Set(spec.tied.map(([alias]) => alias));
    const stored = new Map(spec.tensors.map(({ name: own, stored: other }) => [own, other ?? own]));
    const rows = new Map<string, number>();
    for (const { pieces } of all) {
      for (const { source, rows: picked, columns } of pieces) {
        const key = stored.get(source) ?? source;
        const vector =
          spec.tensors.find((tensor) => tensor.name === source || tensor.stored === source)?.shape.length === 1;
        const share = picked?.length ?? (vector ? columns?.length : undefined) ?? Number.NaN;
        rows.set(key, (rows.get(key) ?? 0) + share);
        for (const order of [picked, columns]) {
          if (order !== null) assert.equal(new Set(order).size, order.length, `${name}: ${source} takes a row twice`);
        }
      }
    }
    const held = storedTensors(spec, () => false).filter((tensor) => tensor.persistent && !aliases.has(tensor.name));
    for (const tensor of held) {
      const count = rows.get(tensor.name);
      assert.ok(count !== undefined, `${name}: ${tensor.name} goes nowhere`);
      // NaN: whole.
      if (!Number.isNaN(count)) assert.equal(count, tensor.shape[0], `${name}: rows of ${tensor.name}`);
    }
    assert.equal(rows.size, held.length, name);
  }
});

test("what llama.cpp computes otherwise is refused with what it has, not written", () => {
  const refused = (name: string, change: object, reason: RegExp) => {
    const spec = modelSpecFromConfig({ ...GGUF_CONFIGS[name], ...change });
    assert.throws(() => architectureFor(spec), { code: "PL_MODEL_UNSUPPORTED", message: reason }, name);
  };
  refused("qwen3_moe", { norm_topk_prob: false }, /softmax_of_chosen as the experts' weights/);
  refused("qwen3_moe", { decoder_sparse_step: 2 }, /experts in every block/);
  refused("gemma2", { query_pre_attn_scalar: 144 }, /a factor of 0\.17.* on scores/);
  refused(
    "gemma2",
    { layer_types: ["full_attention", "sliding_attention", "full_attention", "sliding_attention"] },
    /windows in all blocks but every 2th/,
  );
  refused("gemma", { tie_word_embeddings: false }, /the embedding as head/);
  refused("smollm3", { no_rope_layers: [1, 1, 1, 1] }, /positions in other blocks/);
  refused("baichuan", { num_hidden_layers: 4 }, /32 blocks/);
  refused("glm", { head_dim: 32 }, /heads of hidden_size/);
  refused("cohere2", { attention_bias: true }, /no bias of q, k, v; no bias of output/);
  refused("deepseek_v2", { num_hidden_layers: 4 }, /q_lora_rank/);
  refused("exaone4", { sliding_window: 16, sliding_window_pattern: "LLLG" }, /positions in every block/);
});

test("metadata of a merged model and of an adapter, as @huggingface/gguf reads it", async (t) => {
  const root = temporaryFolder(t);
  const { model, adapter } = await writeGgufModel(root, "qwen3_moe");
  const merged = await run(join(root, "merged"), { model, adapter, outtype: "q8_0" });
  const { metadata, tensors } = await read(join(root, "merged"));
  assert.equal(merged.tensors, tensors.length);
  const expected = {
    ...{ "general.architecture": "qwen3moe", "general.type": "model", "general.file_type": 7 },
    ...{ "qwen3moe.block_count": 4, "qwen3moe.expert_count": 8, "qwen3moe.expert_used_count": 2 },
    ...{ "qwen3moe.attention.head_count_kv": 2, "qwen3moe.attention.key_length": 32, "qwen3moe.rope.freq_base": 10000 },
    ...{ "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "dbrx", "tokenizer.ggml.eos_token_id": 257 },
    ...{ "tokenizer.ggml.bos_token_id": 256, "tokenizer.ggml.add_bos_token": false },
  };
  for (const [key, value] of Object.entries(expected)) assert.equal(metadata[key], value, key);
  assert.equal((metadata["tokenizer.ggml.tokens"] as string[]).length, 320);
  assert.match(String(metadata["tokenizer.chat_template"]), /im_start/);
  const typeOf = (name: string) => tensors.find((tensor) => tensor.name === name)?.dtype;
  assert.equal(typeOf("blk.0.ffn_gate_exps.weight"), 8);
  // Norms and routers stay exact.
  assert.equal(typeOf("blk.0.attn_norm.weight"), 0);
  assert.equal(typeOf("blk.0.ffn_gate_inp.weight"), 0);

  await run(join(root, "lora"), { model, adapter, adapter_only: true });
  const lora = await read(join(root, "lora"));
  assert.equal(lora.metadata["general.type"], "adapter");
  assert.equal(lora.metadata["adapter.lora.alpha"], 12);
  assert.ok(lora.tensors.every(({ name }) => /\.lora_[ab]$/.test(name)));
  const b = lora.tensors.find(({ name }) => name === "blk.2.attn_q.weight.lora_b")!;
  assert.deepEqual(b.shape.map(Number), [8, 128]);
  const modelfile = readFileSync(join(root, "lora", "Modelfile"), "utf8");
  assert.match(modelfile, /^FROM \.\/small-F32\.gguf\nADAPTER \.\/adapter-F32-LoRA\.gguf\nTEMPLATE """/);
  assert.match(modelfile, /PARAMETER stop "<\/s>"/);
});

test("values beyond float16, an adapter on what llama.cpp leaves out, --adapter-only alone: refused, no file", async (t) => {
  const root = temporaryFolder(t);
  const { model, adapter } = await writeGgufModel(root, "glm4");
  await assert.rejects(run(join(root, "a"), { model, adapter, adapter_only: true }), {
    code: "PL_ADAPTER_INVALID",
    message: /o_proj\.weight is adapted, to which llama\.cpp adds no adapter/,
  });
  await assert.rejects(run(join(root, "b"), { model, adapter_only: true }), { code: "PL_CONFIG_INVALID" });
  const path = join(model, "model.safetensors");
  const bytes = readFileSync(path);
  const size = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, 8 + size).toString()) as Record<
    string,
    { data_offsets: [number, number] }
  >;
  bytes.writeFloatLE(1e6, 8 + size + header["model.layers.1.mlp.down_proj.weight"]!.data_offsets[0] + 40);
  writeFileSync(path, bytes);
  await assert.rejects(run(join(root, "c"), { model, outtype: "f16" }), {
    code: "PL_QUANTIZATION_INVALID",
    message: "blk.1.ffn_down.weight holds 1000000, which f16 can't.",
  });
  for (const folder of ["a", "b", "c"]) {
    assert.ok(!readdirSync(root).includes(folder) || readdirSync(join(root, folder)).length === 0, folder);
  }
  await run(join(root, "d"), { model, outtype: "bf16" });
});

test("text is cut by the pattern's own name, and an unknown one is refused", () => {
  const split = (pattern: string, behavior = "Isolated", invert = false) => ({
    type: "Sequence",
    pretokenizers: [
      { type: "Split", pattern: { Regex: pattern }, behavior, invert },
      { type: "ByteLevel", add_prefix_space: false, use_regex: false },
    ],
  });
  const name = (steps: unknown, ignoresMerges = false) => preTokenizerName("t.json", { steps, ignoresMerges }).name;
  const llama = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;
  assert.equal(name(split(llama), true), "llama-bpe");
  assert.equal(name(split(llama)), "dbrx");
  assert.equal(name(split(llama, "Removed", true)), "dbrx");
  assert.equal(name({ type: "ByteLevel", add_prefix_space: false, use_regex: true }), "gpt-2");
  const digits = [
    { type: "Digits", individual_digits: true },
    { type: "ByteLevel", add_prefix_space: false },
  ];
  assert.equal(name({ type: "Sequence", pretokenizers: digits }), "refact");
  for (const other of [
    split(llama, "MergedWithNext"),
    split("\\w+"),
    { type: "ByteLevel", add_prefix_space: true },
    { type: "Whitespace" },
    null,
  ]) {
    assert.throws(() => name(other), { code: "PL_TOKENIZER_INVALID" });
  }
});

test("a chat template becomes Ollama's where turns depend on their role alone", async (t) => {
  const { model } = await writeGgufModel(temporaryFolder(t), "qwen2");
  const tokenizer: Tokenizer = await loadTokenizer(model);
  const made = (source: string, added = false) =>
    ollamaTemplate(new ChatTemplate(tokenizer, source, new Date(0)), { text: "<s>", added });
  const turn = (role: string) => `eq .Role "${role}" }}<|im_start|>${role}\n{{ .Content }}<|im_end|>\n`;
  const chatml = made(CHATML)!;
  assert.ok(chatml.startsWith(`{{ range .Messages }}{{ if ${turn("system")}{{ else if `), chatml);
  // What llama.cpp puts first itself is not said twice.
  assert.equal(made(`{{ bos_token }}${CHATML}`, true), chatml);
  assert.equal(made(`{{ bos_token }}${CHATML}`), `<s>${chatml}`);
  const own = `{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe {{ kind }}.<|im_end|>\\n' }}{% endif %}${CHATML}`;
  assert.match(made(own)!, /\{\{ if ne \(index \.Messages 0\)\.Role "system" \}\}.*Be \{\{ "\{\{" \}\} kind/s);
  const mistral =
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% else %}{{ raise_exception('no system') }}{% endif %}{% endfor %}";
  assert.equal(
    made(mistral, true),
    '{{ range .Messages }}{{ if eq .Role "user" }}[INST] {{ .Content }} [/INST]{{ else if eq .Role "assistant" }}{{ .Content }}</s>{{ end }}{{ end }}',
  );
  const counted = "{% for m in messages %}{{ loop.index ~ m['role'] ~ m['content'] }}{% endfor %}";
  assert.equal(made(counted), null);
});
