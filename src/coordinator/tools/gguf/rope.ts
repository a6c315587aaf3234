import { PipeloraError } from "../../../common/errors.ts";
import { float32, type MetadataValue, string, uint32 } from "../../../formats/gguf/metadata.ts";
import { ropeParametersOf } from "../../../models/rope.ts";
import type { ModelSpec, RopeSpec } from "../../../models/spec.ts";
import { type Architecture, blocksOf } from "./architectures.ts";

/** How the file tells positions: keys below the architecture's name, and tensors of factors that divide frequencies. */
export interface RopeLayout {
  readonly keys: readonly (readonly [string, MetadataValue])[];
  readonly tensors: readonly { readonly name: string; readonly values: readonly number[] }[];
  /** What llama.cpp does differently: a sentence each. */
  readonly warnings: readonly string[];
}

/** Frequencies are float32 in both programs. */
const CLOSE = 1e-5;

/** Error: PL_MODEL_UNSUPPORTED for frequencies that the architecture has no metadata for. */
export function ropeLayout(spec: ModelSpec, architecture: Architecture, config: unknown): RopeLayout {
  const blocks = blocksOf(spec);
  const used = (windowed: boolean) =>
    blocks.find(({ slidingWindow, rotary }) => rotary !== null && (slidingWindow !== null) === windowed)?.rotary ??
    null;
  const [full, windowed] = [used(false), used(true)];
  const rules = spec.rules.rotary;
  const rope = rules[full ?? windowed ?? 0]!;
  const count = ["rope.dimension_count", uint32(2 * rope.invFreq.length)] as const;
  const local = windowed !== null && full !== null && windowed !== full ? rules[windowed]! : null;
  const main = frequencies(spec, architecture, rope, config);
  if (local === null) return { ...main, keys: [count, ...main.keys] };
  const plain = powers(local);
  if (plain === null || Math.abs(plain.linear - 1) > CLOSE) {
    throw unsupported(spec, "its windowed blocks have scaled frequencies");
  }
  return { ...main, keys: [count, ...main.keys, ["rope.freq_base_swa", float32(plain.base)]] };
}

function frequencies(spec: ModelSpec, architecture: Architecture, rope: RopeSpec, config: unknown): RopeLayout {
  const warnings = rope.dynamic === null ? [] : [dynamicWarning(rope.dynamic.from)];
  if (rope.long !== null) return { ...longrope(spec, architecture, rope), warnings };
  const plain = powers(rope);
  if (plain !== null && rope.attentionScaling === 1) {
    const linear = Math.abs(plain.linear - 1) > CLOSE;
    const scaling: [string, MetadataValue][] = linear
      ? [
          ["rope.scaling.type", string("linear")],
          ["rope.scaling.factor", float32(plain.linear)],
        ]
      : [];
    return { keys: [["rope.freq_base", float32(plain.base)], ...scaling], tensors: [], warnings };
  }
  const parameters = ropeParametersOf(config);
  if ((parameters.rope_type ?? parameters.type) === "yarn") return yarn(spec, architecture, rope, config);
  if (!architecture.ropeFactors) throw unsupported(spec, "it reads no factors of single frequencies");
  const factors = dividing(rope, rope.invFreq);
  return {
    keys: [["rope.freq_base", float32(rope.base)]],
    tensors: [{ name: "rope_freqs.weight", values: factors }],
    warnings,
  };
}

const dynamicWarning = (from: number) =>
  `positions of sequences longer than ${from} tokens grow by dynamic NTK, which llama.cpp does not have: it gives other numbers there`;

/** What each frequency base^(-2i / R) is divided by. */
function dividing({ base }: RopeSpec, invFreq: readonly number[]): number[] {
  return invFreq.map((frequency, i) => base ** (-i / invFreq.length) / frequency);
}

/** The base and factor for which these are the frequencies base^(-2i / R) / factor; null: there are none. */
function powers({ base, invFreq }: RopeSpec): { base: number; linear: number } | null {
  const linear = 1 / invFreq[0]!;
  const last = invFreq.length - 1;
  const other = last === 0 ? base : (invFreq[last]! * linear) ** (-invFreq.length / last);
  // Rounded to float32, the last frequency determines the base to a few digits only.
  const found = Math.abs(other / base - 1) < CLOSE * invFreq.length ? base : other;
  const fits = invFreq.every((frequency, i) => {
    const expected = found ** (-i / invFreq.length) / linear;
    return Math.abs(frequency / expected - 1) < CLOSE;
  });
  return fits ? { base: found, linear } : null;
}

function longrope(spec: ModelSpec, { longrope: reads }: Architecture, rope: RopeSpec): Omit<RopeLayout, "warnings"> {
  if (!reads) throw unsupported(spec, "it has no frequencies of their own for long sequences");
  const { from, invFreq } = rope.long!;
  return {
    keys: [
      ["rope.freq_base", float32(rope.base)],
      ["rope.scaling.original_context_length", uint32(from)],
      ["rope.scaling.attn_factor", float32(rope.attentionScaling)],
    ],
    tensors: [
      { name: "rope_factors_long.weight", values: dividing(rope, invFreq) },
      { name: "rope_factors_short.weight", values: dividing(rope, rope.invFreq) },
    ],
  };
}

/** Yarn by its own keys. Its frequencies are recomputed as ggml does (ggml_rope_yarn_corr_dims, rope_yarn) and compared. */
function yarn(spec: ModelSpec, { latent, queryScale }: Architecture, rope: RopeSpec, config: unknown): RopeLayout {
  const parameters = ropeParametersOf(config);
  const original = parameters.original_max_position_embeddings ?? spec.maxPositions;
  const factor = parameters.factor ?? spec.maxPositions / original;
  const [fast, slow] = [parameters.beta_fast ?? 32, parameters.beta_slow ?? 1];
  const count = 2 * rope.invFreq.length;
  const turns = (beta: number) => (count * Math.log(original / (beta * 2 * Math.PI))) / (2 * Math.log(rope.base));
  const low = Math.max(0, Math.floor(turns(fast)));
  const high = Math.min(count - 1, Math.ceil(turns(slow)));
  const off = rope.invFreq.reduce((most, frequency, i) => {
    const plain = rope.base ** ((-2 * i) / count);
    const kept = 1 - Math.min(1, Math.max(0, (i - low) / Math.max(0.001, high - low)));
    return Math.max(most, Math.abs((plain * kept + (plain / factor) * (1 - kept)) / frequency - 1));
  }, 0);
  const warnings =
    off < 10 * CLOSE
      ? []
      : [
          `llama.cpp rounds the dimensions between which yarn scales: its frequencies differ by up to ${(100 * off).toFixed(1)} %`,
        ];
  // ggml multiplies by 0.1 ln(factor) + 1 itself; this key cancels it for latent attention's scores and for Ministral.
  const own = 1 + 0.1 * Math.log(factor);
  const allDim = parameters.mscale_all_dim;
  const log: [string, MetadataValue][] =
    typeof allDim === "number" ? [["rope.scaling.yarn_log_multiplier", float32(latent ? 0.1 * allDim : allDim)]] : [];
  const attention: [string, MetadataValue][] =
    latent || queryScale || Math.abs(rope.attentionScaling / own - 1) < CLOSE
      ? []
      : [["rope.scaling.attn_factor", float32(rope.attentionScaling / own)]];
  return {
    keys: [
      ["rope.freq_base", float32(rope.base)],
      ["rope.scaling.type", string("yarn")],
      ["rope.scaling.factor", float32(factor)],
      ["rope.scaling.original_context_length", uint32(original)],
      ["rope.scaling.yarn_beta_fast", float32(fast)],
      ["rope.scaling.yarn_beta_slow", float32(slow)],
      ...log,
      ...attention,
    ],
    tensors: [],
    warnings,
  };
}

function unsupported(spec: ModelSpec, reason: string): PipeloraError {
  return new PipeloraError(
    "PL_MODEL_UNSUPPORTED",
    `llama.cpp can't be told the rotary frequencies of this ${spec.architecture}: ${reason}.`,
    { hint: "Merge the adapter (coordinator merge) and serve it with transformers or vLLM." },
  );
}
