import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { writeCheckpoint } from "../../../src/formats/checkpoint-writer.ts";
import { float32Bytes, type TensorToWrite, writeSafetensors } from "../../../src/formats/safetensors.ts";
import { modelSpecFromConfig } from "../../../src/models/index.ts";

/** A call that the model makes when it is told of tools. */
export const CALL = { name: "get_weather", arguments: { city: "Lyon", days: 3 } };

const BYTES = 256;
const SPECIALS = ["<|eos|>", "<|user|>", "<|assistant|>", "<|told|>", "<|tool|>"];
const TEXTS = ["<tool_call>", "</tool_call>", JSON.stringify(CALL)];
const VOCABULARY = 288;

const idOf = (token: string) => BYTES + [...SPECIALS, ...TEXTS].indexOf(token);
export const EOS = idOf("<|eos|>");

/**
 * What follows a token, whatever stands before it: A to Z and then the end, digits for ever (9, then 0); behind a chat's question A to Z, where
 * it is told of tools a call.
 */
function follower(id: number): number {
  const character = String.fromCharCode(id);
  if (/[A-Ya-y0-8]/.test(character)) return id + 1;
  if (character === "9") return "0".charCodeAt(0);
  if (id === idOf("<|assistant|>")) return "A".charCodeAt(0);
  if (id === idOf("<|told|>")) return idOf(TEXTS[0]!);
  if (id === idOf(TEXTS[0]!)) return idOf(TEXTS[2]!);
  if (id === idOf(TEXTS[2]!)) return idOf(TEXTS[1]!);
  return EOS;
}

const TEMPLATE =
  "{% for message in messages %}{{ '<|' + ('tool' if message.role == 'tool' else 'user') + '|>' + message.content }}{% endfor %}" +
  "{% if tools %}{# <tool_call> #}{{ tools | tojson }}{% endif %}" +
  "{% if add_generation_prompt %}{{ '<|told|>' if tools and messages[-1].role != 'tool' else '<|assistant|>' }}{% endif %}";

/** ByteLevel's characters for bytes, as GPT-2 has them. */
function byteCharacters(): string[] {
  const printable = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: BYTES }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++));
}

/**
 * A model whose replies are known: a Llama of `layers` blocks that add nothing, over a tokenizer of bytes. It is as much work as any
 * model of its size.
 */
export async function writeChainModel(dir: string, layers = 2): Promise<void> {
  const config = {
    ...{ architectures: ["LlamaForCausalLM"], model_type: "llama", torch_dtype: "float32", vocab_size: VOCABULARY },
    ...{ hidden_size: VOCABULARY, intermediate_size: 96, num_hidden_layers: layers, num_attention_heads: 4 },
    ...{ num_key_value_heads: 2, head_dim: 72, max_position_embeddings: 2048, rms_norm_eps: 1e-6, hidden_act: "silu" },
    ...{ rope_theta: 10000, tie_word_embeddings: false, bos_token_id: null, eos_token_id: EOS },
  };
  writeFileSync(join(dir, "config.json"), JSON.stringify(config));
  const tensors = modelSpecFromConfig(config).tensors.map(({ name, shape }): TensorToWrite => {
    const values = new Float32Array(shape.reduce((count, extent) => count * extent, 1));
    if (/norm/.test(name)) values.fill(1);
    else if (/embed_tokens/.test(name)) for (let id = 0; id < VOCABULARY; id++) values[id * VOCABULARY + id] = 1;
    else if (/lm_head/.test(name)) for (let id = 0; id < VOCABULARY; id++) values[follower(id) * VOCABULARY + id] = 1;
    else if (!/o_proj|down_proj/.test(name)) for (const at of values.keys()) values[at] = Math.sin(at * 12.9898) / 8;
    return { name, dtype: "float32", shape, data: () => float32Bytes(values) };
  });
  await writeCheckpoint(dir, tensors);
  const characters = byteCharacters();
  const added = [...SPECIALS, ...TEXTS].map((content) => ({
    ...{ id: idOf(content), content, special: SPECIALS.includes(content), single_word: false },
    ...{ lstrip: false, rstrip: false, normalized: false },
  }));
  writeFileSync(
    join(dir, "tokenizer.json"),
    JSON.stringify({
      version: "1.0",
      ...{ truncation: null, padding: null, normalizer: null, post_processor: null, added_tokens: added },
      pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
      decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
      model: {
        ...{ type: "BPE", dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null },
        ...{ fuse_unk: false, byte_fallback: false, merges: [] },
        vocab: Object.fromEntries(characters.map((character, byte) => [character, byte])),
      },
    }),
  );
  writeFileSync(
    join(dir, "tokenizer_config.json"),
    JSON.stringify({ tokenizer_class: "PreTrainedTokenizerFast", eos_token: "<|eos|>", chat_template: TEMPLATE }),
  );
}

export const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/** The digits that follow one, so many. */
export function digitsAfter(digit: number, count: number): string {
  return Array.from({ length: count }, (_, place) => (digit + 1 + place) % 10).join("");
}

/** An adapter of such a model under which a chat's reply begins with another letter. `r`, `alpha`: whatever, the reply is the same. */
export async function writeChainAdapter(
  dir: string,
  letter: string,
  { r, alpha }: { r: number; alpha: number },
): Promise<void> {
  const head = "base_model.model.lm_head";
  const beside = "base_model.model.model.layers.0.self_attn.q_proj";
  const a = new Float32Array(r * VOCABULARY);
  const b = new Float32Array(VOCABULARY * r);
  // The last rank alone does it.
  a[(r - 1) * VOCABULARY + idOf("<|assistant|>")] = 1;
  b[letter.charCodeAt(0) * r + r - 1] = (4 * r) / alpha;
  const tensor = (name: string, shape: number[], values: Float32Array): TensorToWrite => ({
    ...{ name, dtype: "float32", shape, data: () => float32Bytes(values) },
  });
  mkdirSync(dir, { recursive: true });
  await writeSafetensors(join(dir, "adapter_model.safetensors"), [
    tensor(`${head}.lora_A.weight`, [r, VOCABULARY], a),
    tensor(`${head}.lora_B.weight`, [VOCABULARY, r], b),
    ...(r > 1
      ? [
          tensor(`${beside}.lora_A.weight`, [r, VOCABULARY], new Float32Array(r * VOCABULARY).fill(0.01)),
          tensor(`${beside}.lora_B.weight`, [VOCABULARY, r], new Float32Array(VOCABULARY * r).fill(0.02)),
        ]
      : []),
  ]);
  writeFileSync(
    join(dir, "adapter_config.json"),
    JSON.stringify({
      ...{ peft_type: "LORA", task_type: "CAUSAL_LM", r, lora_alpha: alpha, lora_dropout: 0, bias: "none" },
      target_modules: r > 1 ? ["lm_head", "layers.0.self_attn.q_proj"] : ["lm_head"],
    }),
  );
}
