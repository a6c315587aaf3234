import { z } from "zod";
import { contradiction, parseConfig, unsupported } from "../config.ts";
import type { DecoderFamily } from "../decoder.ts";
import { LLAMA_NAMES } from "../decoder-names.ts";
import type { ModelSpec } from "../spec.ts";

/** What a text model is named as a part of a multimodal checkpoint. */
export type TextPart = Pick<DecoderFamily, "family" | "prefix" | "names" | "skipped">;

const outer = z.looseObject({ text_config: z.looseObject({ model_type: z.string().max(64).nullable().optional() }) });

/** Keys that stand beside text_config and hold for it, where it has none of its own. */
const SHARED = ["torch_dtype", "dtype", "eos_token_id", "quantization_config"] as const;

/** Where a checkpoint has its text model, and the other parts. */
interface PartPlace {
  readonly root: string;
  readonly head: string;
  readonly skipped: readonly string[];
  /** Whether the head stands outside of the text model, so that tie_word_embeddings beside text_config goes before the one in it. */
  readonly headOutside: boolean;
}

const NESTED: PartPlace = {
  root: "model.language_model",
  head: "lm_head",
  skipped: ["model.vision_tower.", "model.visual.", "model.multi_modal_projector.", "mtp."],
  headOutside: true,
};

/**
 * The text model of a checkpoint that has eyes too: its blocks lie under model.language_model (transformers 5's names; older files'
 * language_model.model is renamed when it is read) or where `place` says, the other parts are left where they are. `readers`: by text_config's model_type.
 */
export function textPartSpec(
  config: unknown,
  generation: unknown,
  own: { readonly family: string; readonly prefix: string },
  readers: Readonly<Record<string, (text: unknown, generation: unknown, part: TextPart) => ModelSpec>>,
  place: PartPlace = NESTED,
): ModelSpec {
  const parsed = parseConfig(outer, config);
  const type = parsed.text_config.model_type ?? Object.keys(readers)[0]!;
  const reader = Object.hasOwn(readers, type) ? readers[type] : undefined;
  if (reader === undefined) unsupported("text_config.model_type", type, Object.keys(readers).join(", "));
  const shared = Object.fromEntries(SHARED.flatMap((key) => (parsed[key] === undefined ? [] : [[key, parsed[key]]])));
  const text: Record<string, unknown> = { ...shared, ...parsed.text_config, model_type: type, architectures: null };
  if (Object.hasOwn(text, "text_config")) contradiction("text_config holds a text_config");
  const { root, head, skipped, headOutside } = place;
  const tie = headOutside ? (parsed["tie_word_embeddings"] ?? null) : null;
  if (tie !== null) text["tie_word_embeddings"] = tie;
  return reader(text, generation, {
    ...own,
    names: {
      embedding: `${root}.embed_tokens`,
      layers: `${root}.layers`,
      norm: `${root}.norm`,
      rotary: `${root}.rotary_emb`,
      head,
      classes: { ...LLAMA_NAMES.classes, causal: "ForConditionalGeneration" },
    },
    skipped,
  });
}
