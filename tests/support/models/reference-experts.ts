/**
 * A decoder with experts in float64, written from the formulas of transformers' modeling files and from config.json alone: what the
 * engine is held against. Nothing of src/models is used.
 */

export interface ReferenceConfig {
  readonly model_type: string;
  readonly hidden_size: number;
  readonly num_hidden_layers: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads: number;
  readonly head_dim: number;
  readonly vocab_size: number;
  readonly rms_norm_eps: number;
  readonly rope_theta: number;
  readonly num_experts_per_tok: number;
  readonly [key: string]: unknown;
}

/** Row-major values by checkpoint name; matrices [out, in] unless said otherwise. */
export type Weights = ReadonlyMap<string, Float64Array>;
/** Added to W: scale · B · A, by the name of the weight, or of a parameter of all experts. */
export type Deltas = ReadonlyMap<
  string,
  {
    readonly a: Float64Array;
    readonly b: Float64Array;
    readonly r: number;
    readonly scale: number;
    readonly experts: number;
  }
>;

type Rows = Float64Array[];

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
const silu = (x: number) => x * sigmoid(x);

function softmax(values: readonly number[]): number[] {
  const top = Math.max(...values);
  const all = values.map((value) => Math.exp(value - top));
  const total = all.reduce((sum, value) => sum + value, 0);
  return all.map((value) => value / total);
}

function times(x: Float64Array, weight: Float64Array, first: number, out: number): Float64Array {
  const y = new Float64Array(out);
  for (let o = 0; o < out; o++) {
    let sum = 0;
    for (let i = 0; i < x.length; i++) sum += x[i]! * weight[first + o * x.length + i]!;
    y[o] = sum;
  }
  return y;
}

function norm(x: Float64Array, weight: Float64Array, eps: number): Float64Array {
  const mean = x.reduce((sum, value) => sum + value * value, 0) / x.length;
  return x.map((value, i) => (value / Math.sqrt(mean + eps)) * weight[i]!);
}

/** Indices of the `count` largest, the largest first. */
function largest(values: readonly number[], count: number): number[] {
  return values
    .map((value, index) => [value, index] as const)
    .sort((a, b) => b[0] - a[0] || a[1] - b[1])
    .slice(0, count)
    .map(([, index]) => index);
}

export class ReferenceModel {
  readonly #config: ReferenceConfig;
  readonly #weights: Weights;
  readonly #deltas: Deltas;

  constructor(config: ReferenceConfig, weights: Weights, deltas: Deltas) {
    this.#config = config;
    this.#weights = weights;
    this.#deltas = deltas;
  }

  /** Mean cross entropy of each position's next token. */
  loss(ids: readonly number[]): number {
    const { hidden_size: hidden, num_hidden_layers: layers, vocab_size: vocab, rms_norm_eps: eps } = this.#config;
    const embedding = this.#tensor("model.embed_tokens.weight");
    let x: Rows = ids.map((id) => embedding.slice(id * hidden, (id + 1) * hidden));
    for (let layer = 0; layer < layers; layer++) {
      const at = `model.layers.${layer}`;
      const normed = x.map((row) => norm(row, this.#tensor(`${at}.input_layernorm.weight`), eps));
      const attended = this.#attention(layer, normed);
      const mid = x.map((row, t) => row.map((value, i) => value + attended[t]![i]!));
      x = mid.map((row) => {
        const h = norm(row, this.#tensor(`${at}.post_attention_layernorm.weight`), eps);
        const added = this.#feedForward(layer, h);
        return row.map((value, i) => value + added[i]!);
      });
    }
    let total = 0;
    for (let t = 0; t + 1 < ids.length; t++) {
      const last = norm(x[t]!, this.#tensor("model.norm.weight"), eps);
      const logits = [...times(last, this.#tensor("lm_head.weight"), 0, vocab)];
      total -= Math.log(softmax(logits)[ids[t + 1]!]!);
    }
    return total / (ids.length - 1);
  }

  #tensor(name: string): Float64Array {
    const found = this.#weights.get(name);
    if (found === undefined) throw new Error(`the reference has no ${name}`);
    return found;
  }

  /** x Wᵀ + bias + LoRA's term. */
  #linear(name: string, x: Float64Array, out: number): Float64Array {
    const y = times(x, this.#tensor(`${name}.weight`), 0, out);
    const bias = this.#weights.get(`${name}.bias`);
    if (bias !== undefined) for (let o = 0; o < out; o++) y[o]! += bias[o]!;
    this.#adapt(`${name}.weight`, 0, x, y);
    return y;
  }

  #adapt(name: string, expert: number, x: Float64Array, y: Float64Array): void {
    const delta = this.#deltas.get(name);
    if (delta === undefined) return;
    const { a, b, r, scale, experts } = delta;
    const inner = times(x, a, expert * r * x.length, r);
    for (let o = 0; o < y.length; o++) {
      for (let rank = 0; rank < r; rank++)
        y[o]! += scale * b[o * r * experts + rank * experts + expert]! * inner[rank]!;
    }
  }

  /** The same where peft takes [N, in, out] for [N, out, in]: W + B A, A [N r, out], B [in, r N]. */
  #adaptCrossed(name: string, expert: number, x: Float64Array, y: Float64Array): void {
    const delta = this.#deltas.get(name);
    if (delta === undefined) return;
    const { a, b, r, scale, experts } = delta;
    for (let rank = 0; rank < r; rank++) {
      let inner = 0;
      for (let i = 0; i < x.length; i++) inner += x[i]! * b[i * r * experts + rank * experts + expert]!;
      for (let o = 0; o < y.length; o++) y[o]! += scale * inner * a[(expert * r + rank) * y.length + o]!;
    }
  }

  /** Llama 4: neighbours turn and are normed without a weight, or queries are scaled by their place, 1 the first. */
  #llama4Head(layer: number, name: string, head: Float64Array, position: number): Float64Array {
    const config = this.#config;
    if ((config["no_rope_layers"] as number[])[layer] === 0) {
      const place = Math.floor((position + 1) / (config["floor_scale"] as number));
      const scale = 1 + (config["attn_scale"] as number) * Math.log(1 + place);
      return name === "q" && config["attn_temperature_tuning"] === true ? head.map((value) => value * scale) : head;
    }
    const turned = head.map((value, i) => {
      const angle = position * config.rope_theta ** (-(i - (i % 2)) / head.length);
      const other = head[i ^ 1]!;
      return value * Math.cos(angle) + (i % 2 === 0 ? -other : other) * Math.sin(angle);
    });
    return config["use_qk_norm"] === true
      ? norm(
          turned,
          head.map(() => 1),
          config.rms_norm_eps,
        )
      : turned;
  }

  #attention(layer: number, rows: Rows): Rows {
    const config = this.#config;
    const llama4 = config.model_type === "llama4_text";
    const at = `model.layers.${layer}.self_attn`;
    const { num_attention_heads: heads, num_key_value_heads: kvHeads, head_dim: width } = config;
    const turned = (name: string, count: number): Rows =>
      rows.map((row, position) => {
        const y = this.#linear(`${at}.${name}_proj`, row, count * width);
        const weight = this.#weights.get(`${at}.${name}_norm.weight`);
        for (let head = 0; head < count; head++) {
          let part: Float64Array = y.slice(head * width, (head + 1) * width);
          if (weight !== undefined) part = norm(part, weight, config.rms_norm_eps);
          const own = llama4 ? this.#llama4Head(layer, name, part, position) : this.#turn(part, position);
          y.set(own, head * width);
        }
        return y;
      });
    const [q, k] = [turned("q", heads), turned("k", kvHeads)];
    const v = rows.map((row) => this.#linear(`${at}.v_proj`, row, kvHeads * width));
    const windowed = (config["layer_types"] as string[] | undefined)?.[layer] === "sliding_attention";
    const window = windowed ? (config["sliding_window"] as number) : Number.POSITIVE_INFINITY;
    const chunked = llama4 && (config["no_rope_layers"] as number[])[layer] === 1;
    const chunk = chunked ? (config["attention_chunk_size"] as number) : Number.POSITIVE_INFINITY;
    const sinks = this.#weights.get(`${at}.sinks`);
    return rows.map((_, t) => {
      const out = new Float64Array(heads * width);
      for (let head = 0; head < heads; head++) {
        const kv = Math.floor(head / (heads / kvHeads));
        const scores: number[] = [];
        const first = chunked ? t - (t % chunk) : Math.max(0, t - window + 1);
        for (let j = first; j <= t; j++) {
          let dot = 0;
          for (let c = 0; c < width; c++) dot += q[t]![head * width + c]! * k[j]![kv * width + c]!;
          scores.push(dot / Math.sqrt(width));
        }
        if (sinks !== undefined) scores.push(sinks[head]!);
        const shares = softmax(scores);
        for (let j = first; j <= t; j++) {
          for (let c = 0; c < width; c++) out[head * width + c]! += shares[j - first]! * v[j]![kv * width + c]!;
        }
      }
      return this.#linear(`${at}.o_proj`, out, config.hidden_size);
    });
  }

  #turn(head: Float64Array, position: number): Float64Array {
    const columns = Math.trunc(head.length * ((this.#config["partial_rotary_factor"] as number | undefined) ?? 1));
    const half = columns / 2;
    const turned = head.slice();
    for (let i = 0; i < half; i++) {
      const angle = position * this.#config.rope_theta ** ((-2 * i) / columns);
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      turned[i] = head[i]! * cos - head[i + half]! * sin;
      turned[i + half] = head[i + half]! * cos + head[i]! * sin;
    }
    return turned;
  }

  #mlp(path: string, h: Float64Array): Float64Array {
    const ffn = this.#tensor(`${path}.gate_proj.weight`).length / h.length;
    const gate = this.#linear(`${path}.gate_proj`, h, ffn);
    const up = this.#linear(`${path}.up_proj`, h, ffn);
    return this.#linear(
      `${path}.down_proj`,
      gate.map((value, i) => silu(value) * up[i]!),
      h.length,
    );
  }

  #feedForward(layer: number, h: Float64Array): Float64Array {
    const config = this.#config;
    if (config.model_type === "llama4_text") return this.#llama4FeedForward(layer, h);
    const at = `model.layers.${layer}.mlp`;
    const dense =
      config.model_type === "glm4_moe"
        ? layer < (config["first_k_dense_replace"] as number)
        : ((config["mlp_only_layers"] as number[] | undefined) ?? []).includes(layer) ||
          (layer + 1) % ((config["decoder_sparse_step"] as number | undefined) ?? 1) !== 0;
    if (dense) return this.#mlp(at, h);
    const { chosen, weights } = this.#route(layer, h);
    const y = new Float64Array(h.length);
    for (const [i, expert] of chosen.entries()) {
      const out = this.#expert(layer, expert, h);
      for (let c = 0; c < y.length; c++) y[c]! += weights[i]! * out[c]!;
    }
    if (config.model_type === "qwen2_moe") {
      const share = sigmoid(this.#linear(`${at}.shared_expert_gate`, h, 1)[0]!);
      this.#mlp(`${at}.shared_expert`, h).forEach((value, c) => {
        y[c]! += share * value;
      });
    }
    if (config.model_type === "glm4_moe") {
      this.#mlp(`${at}.shared_experts`, h).forEach((value, c) => {
        y[c]! += value;
      });
    }
    return y;
  }

  /** An expert takes the row times the sigmoid of its logit; gate's columns stand before up's, [experts, in, out]. */
  #llama4FeedForward(layer: number, h: Float64Array): Float64Array {
    const config = this.#config;
    const at = `model.layers.${layer}.feed_forward`;
    const step = config["interleave_moe_layer_step"] as number;
    if ((layer + 1) % step !== 0) return this.#mlp(at, h);
    const experts = config["num_local_experts"] as number;
    const logits = [...this.#linear(`${at}.router`, h, experts)];
    const y = this.#mlp(`${at}.shared_expert`, h);
    const ffn = config["intermediate_size"] as number;
    const product = (name: string, expert: number, x: Float64Array, out: number) => {
      const weight = this.#tensor(`${at}.experts.${name}`);
      const made = Float64Array.from({ length: out }, (_, o) =>
        x.reduce((sum, value, i) => sum + value * weight[(expert * x.length + i) * out + o]!, 0),
      );
      this.#adaptCrossed(`${at}.experts.${name}`, expert, x, made);
      return made;
    };
    for (const expert of largest(logits, config.num_experts_per_tok)) {
      const share = sigmoid(logits[expert]!);
      const both = product(
        "gate_up_proj",
        expert,
        h.map((value) => share * value),
        2 * ffn,
      );
      const act = Float64Array.from({ length: ffn }, (_, i) => silu(both[i]!) * both[ffn + i]!);
      product("down_proj", expert, act, h.length).forEach((value, c) => {
        y[c]! += value;
      });
    }
    return y;
  }

  #route(layer: number, h: Float64Array): { chosen: number[]; weights: number[] } {
    const config = this.#config;
    const count = config.num_experts_per_tok;
    const path = `model.layers.${layer}`;
    const of = { mixtral: "block_sparse_moe.gate", gpt_oss: "mlp.router" }[config.model_type] ?? "mlp.gate";
    const router = `${path}.${of}`;
    const experts = this.#tensor(`${router}.weight`).length / h.length;
    const logits = [...this.#linear(router, h, experts)];
    if (config.model_type === "gpt_oss") {
      const chosen = largest(logits, count);
      return { chosen, weights: softmax(chosen.map((expert) => logits[expert]!)) };
    }
    if (config.model_type !== "glm4_moe") {
      const shares = softmax(logits);
      const chosen = largest(shares, count);
      const weights = chosen.map((expert) => shares[expert]!);
      const sum = weights.reduce((total, weight) => total + weight, 0);
      const normalised = config.model_type === "mixtral" || config["norm_topk_prob"] === true;
      return { chosen, weights: normalised ? weights.map((weight) => weight / sum) : weights };
    }
    const scores = logits.map(sigmoid);
    const correction = this.#tensor(`${router}.e_score_correction_bias`);
    const corrected = scores.map((score, expert) => score + correction[expert]!);
    const groups = config["n_group"] as number;
    const size = experts / groups;
    const best = largest(
      Array.from({ length: groups }, (_, group) => {
        const own = corrected.slice(group * size, (group + 1) * size).sort((a, b) => b - a);
        return own[0]! + (own[1] ?? 0);
      }),
      config["topk_group"] as number,
    );
    const kept = corrected.map((score, expert) =>
      best.includes(Math.floor(expert / size)) ? score : Number.NEGATIVE_INFINITY,
    );
    const chosen = largest(kept, count);
    const weights = chosen.map((expert) => scores[expert]!);
    const sum = config["norm_topk_prob"] === true ? weights.reduce((total, weight) => total + weight, 0) + 1e-20 : 1;
    return { chosen, weights: weights.map((weight) => (weight / sum) * (config["routed_scaling_factor"] as number)) };
  }

  #expert(layer: number, expert: number, h: Float64Array): Float64Array {
    const path = `model.layers.${layer}.mlp.experts`;
    if (this.#config.model_type === "gpt_oss") return this.#clampedExpert(path, expert, h);
    const at =
      this.#config.model_type === "mixtral"
        ? `model.layers.${layer}.block_sparse_moe.experts.${expert}`
        : `${path}.${expert}`;
    const [g, u, d] =
      this.#config.model_type === "mixtral" ? ["w1", "w3", "w2"] : ["gate_proj", "up_proj", "down_proj"];
    const ffn = this.#tensor(`${at}.${g}.weight`).length / h.length;
    const both = new Float64Array(2 * ffn);
    both.set(times(h, this.#tensor(`${at}.${g}.weight`), 0, ffn));
    both.set(times(h, this.#tensor(`${at}.${u}.weight`), 0, ffn), ffn);
    this.#adapt(`${path}.gate_up_proj`, expert, h, both);
    const act = Float64Array.from({ length: ffn }, (_, i) => silu(both[i]!) * both[ffn + i]!);
    const out = times(act, this.#tensor(`${at}.${d}.weight`), 0, h.length);
    this.#adapt(`${path}.down_proj`, expert, act, out);
    return out;
  }

  #clampedExpert(path: string, expert: number, h: Float64Array): Float64Array {
    const hidden = h.length;
    const ffn = this.#config["intermediate_size"] as number;
    // [experts, in, out], gate and up in turn.
    const product = (name: string, x: Float64Array, out: number) => {
      const weight = this.#tensor(`${path}.${name}`);
      const bias = this.#tensor(`${path}.${name}_bias`);
      const y = Float64Array.from({ length: out }, (_, o) => {
        let sum = bias[expert * out + o]!;
        for (let i = 0; i < x.length; i++) sum += x[i]! * weight[(expert * x.length + i) * out + o]!;
        return sum;
      });
      this.#adapt(`${path}.${name}`, expert, x, y);
      return y;
    };
    const both = product("gate_up_proj", h, 2 * ffn);
    const act = Float64Array.from({ length: ffn }, (_, i) => {
      const gate = Math.min(both[2 * i]!, 7);
      const up = Math.max(-7, Math.min(7, both[2 * i + 1]!));
      return (up + 1) * gate * sigmoid(1.702 * gate);
    });
    return product("down_proj", act, hidden);
  }
}
