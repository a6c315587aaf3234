import type { EngineArch } from "../../../src/engine/index.ts";
import { modelSpecFromConfig } from "../../../src/models/index.ts";
import { engineArch } from "../../../src/worker/segments.ts";

/** The numbers of a Llama of 8 columns, for tests that need an engine and no model. */
export function smallArch(): EngineArch {
  const sizes = { hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1, vocab_size: 8 };
  return engineArch(modelSpecFromConfig({ model_type: "llama", ...sizes }), "float32");
}
