import type { Config } from "./options.ts";

/** Settings that decide how a model's weights are stored and in which dtype it computes. They change numbers. */
export const HELD_AS = [
  "torch_dtype",
  "compute_dtype",
  "fp8",
  "load_in_4bit",
  "load_in_8bit",
  "bnb_4bit_quant_type",
  "bnb_4bit_use_double_quant",
  "bnb_4bit_compute_dtype",
  "llm_int8_threshold",
  "llm_int8_skip_modules",
] as const satisfies readonly (keyof Config)[];
