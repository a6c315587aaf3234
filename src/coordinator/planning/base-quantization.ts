import { isFloatDtype } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import { INT8_THRESHOLD, type QuantizationSettings } from "../../common/quantization.ts";
import type { Config } from "../../config/options.ts";
import type { Checkpoint } from "../../formats/checkpoint.ts";
import { type PackedWeights, readPackedWeights } from "../../formats/quantized-state.ts";
import { blockLinears, matchSkipPattern, skippedLinears } from "../../models/quantization.ts";
import type { LinearSpec, ModelSpec } from "../../models/spec.ts";

/** How the base's linear weights are held. */
export interface BaseQuantization {
  readonly settings: QuantizationSettings;
  /** The linears that are quantised. */
  readonly linears: readonly LinearSpec[];
  /** Names of the block linears that are not. */
  readonly skipped: ReadonlySet<string>;
  /** The patterns that skip them; null: none were given. */
  readonly skipModules: readonly string[] | null;
  /** The checkpoint is quantised already. */
  readonly stored: boolean;
}

export type QuantizationFlags = Pick<
  Config,
  | "load_in_4bit"
  | "load_in_8bit"
  | "bnb_4bit_quant_type"
  | "bnb_4bit_use_double_quant"
  | "bnb_4bit_compute_dtype"
  | "llm_int8_threshold"
  | "llm_int8_skip_modules"
>;

/**
 * The quantised form that flags ask for, or that the checkpoint is stored in. A quantised checkpoint's own settings win, as in
 * transformers. null: not quantised. Errors: PL_CONFIG_INVALID.
 */
export function baseQuantization(
  flags: QuantizationFlags,
  spec: ModelSpec,
): { readonly quantization: BaseQuantization | null; readonly warnings: readonly string[] } {
  const asked = settingsOf(flags);
  const stored = spec.quantization;
  const settings = stored?.settings ?? asked;
  if (asked !== null && settings!.method !== asked.method) {
    throw new PipeloraError(
      "PL_CONFIG_INVALID",
      `--load-in-${asked.method} was given, but the checkpoint is quantised in ${settings!.method.replace("bit", " bits")} already.`,
      { hint: `Leave the flag out, or load the 16-bit checkpoint.` },
    );
  }
  checkActing(flags, settings);
  if (settings === null) return { quantization: null, warnings: [] };
  const skipModules = stored === null ? flags.llm_int8_skip_modules : stored.skipModules;
  const skipped = skippedLinears(spec, skipModules ?? []);
  const linears = blockLinears(spec).filter(({ name }) => !skipped.has(name));
  return {
    quantization: { settings, linears, skipped, skipModules, stored: stored !== null },
    warnings: stored === null ? unmatched(spec, skipModules ?? []) : overridden(flags, asked, stored.settings),
  };
}

/** Checks a quantised checkpoint's states; empty for others. Error: PL_QUANTIZATION_INVALID. */
export async function packedWeights(
  quantization: BaseQuantization | null,
  spec: ModelSpec,
  checkpoint: Checkpoint,
): Promise<PackedWeights> {
  if (quantization === null || !quantization.stored) return new Map();
  const dtype = isFloatDtype(spec.dtype) ? spec.dtype : "float16";
  return readPackedWeights(checkpoint, blockLinears(spec), quantization.settings, quantization.skipped, dtype);
}

function settingsOf(flags: QuantizationFlags): QuantizationSettings | null {
  if (flags.load_in_4bit) {
    return { method: "4bit", quantType: flags.bnb_4bit_quant_type, doubleQuant: flags.bnb_4bit_use_double_quant };
  }
  return flags.load_in_8bit ? { method: "8bit", threshold: flags.llm_int8_threshold } : null;
}

function checkActing(flags: QuantizationFlags, settings: QuantizationSettings | null): void {
  const refuse = (flag: string, base: string) => {
    throw new PipeloraError("PL_CONFIG_INVALID", `${flag} acts only with ${base}.`, {
      hint: "Leave it out, or say --load-in-4bit or --load-in-8bit.",
    });
  };
  if (flags.bnb_4bit_compute_dtype !== null && settings?.method !== "4bit")
    refuse("--bnb-4bit-compute-dtype", "a 4-bit base");
  if (flags.llm_int8_threshold !== INT8_THRESHOLD && settings?.method !== "8bit") {
    refuse("--llm-int8-threshold", "an 8-bit base");
  }
  if (flags.llm_int8_skip_modules !== null && settings === null) {
    refuse("--llm-int8-skip-modules", "a quantised base");
  }
}

function unmatched(spec: ModelSpec, patterns: readonly string[]): string[] {
  const modules = spec.modules.map(({ name }) => name);
  return patterns
    .filter((pattern) => matchSkipPattern(pattern, modules).length === 0)
    .map((pattern) => `llm_int8_skip_modules: "${pattern}" matches no module of this model`);
}

/** Flags that the checkpoint's own settings contradict. */
function overridden(
  flags: QuantizationFlags,
  asked: QuantizationSettings | null,
  stored: QuantizationSettings,
): string[] {
  const differing: string[] = [];
  if (stored.method === "4bit" && asked !== null && JSON.stringify(asked) !== JSON.stringify(stored)) {
    differing.push("--bnb-4bit-…");
  }
  const { llm_int8_threshold: threshold } = flags;
  if (stored.method === "8bit" && threshold !== INT8_THRESHOLD && threshold !== stored.threshold) {
    differing.push("--llm-int8-threshold");
  }
  if (flags.llm_int8_skip_modules !== null) differing.push("--llm-int8-skip-modules");
  if (differing.length === 0) return [];
  return [`the checkpoint is quantised already: its own settings hold, not ${differing.join(" and ")}`];
}
