import { resolve } from "node:path";
import { type Dtype, type FloatDtype, isFloatDtype } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import type { LoraSettings } from "../../common/lora-settings.ts";
import type { Config } from "../../config/options.ts";
import { type Adapter, adapterPairs, openAdapter } from "../../formats/adapter.ts";
import { type Checkpoint, openCheckpoint, verifyCheckpoint } from "../../formats/checkpoint.ts";
import { type PackedWeights, tensorNames } from "../../formats/quantized-state.ts";
import { readModelSpec } from "../../models/index.ts";
import { type ResolvedLora, resolveLoraTargets } from "../../models/lora-targets.ts";
import type { ModelSpec } from "../../models/spec.ts";
import { type BaseQuantization, baseQuantization, packedWeights, type QuantizationFlags } from "./base-quantization.ts";

type LoraFlags = Pick<
  Config,
  | "lora_r"
  | "lora_alpha"
  | "lora_dropout"
  | "target_modules"
  | "exclude_modules"
  | "layers_to_transform"
  | "layers_pattern"
  | "rank_pattern"
  | "alpha_pattern"
  | "use_rslora"
  | "init_lora_weights"
>;

/** Which model, how its weights are held, and which adapter it gets. */
export type ModelSettings = QuantizationFlags & LoraFlags & Pick<Config, "model" | "adapter" | "torch_dtype">;

/** The model of a run, checked as far as can be without reading a weight. */
export interface ModelSetup {
  /** --model as the user wrote it: what an adapter's configuration names. */
  readonly name: string;
  /** Absolute. */
  readonly dir: string;
  readonly spec: ModelSpec;
  /** null: only the configuration is there (plan, parameters). */
  readonly checkpoint: Checkpoint | null;
  /** null: the base model alone. */
  readonly lora: ResolvedLora | null;
  /** The adapter that `lora` comes from; null: new. */
  readonly adapter: Adapter | null;
  /** dtype in which unquantised weights are held. */
  readonly holdDtype: FloatDtype;
  /** null: unquantised. */
  readonly quantization: BaseQuantization | null;
  /** The weights that the checkpoint holds quantised, by module; empty without `checkpoint`. */
  readonly packed: PackedWeights;
  readonly warnings: readonly string[];
}

/**
 * Reads and checks configuration, headers, quantiser's states and adapter.
 * `weights`: whether a checkpoint must be there. `lora`: whether LoRA settings of flags apply without --adapter.
 */
export async function setUpModel(
  config: ModelSettings,
  needs: { weights: boolean; lora: boolean },
): Promise<ModelSetup> {
  const dir = resolve(config.model!);
  const spec = await readModelSpec(dir);
  const { quantization, warnings: ofBase } = baseQuantization(config, spec);
  const warnings = [...ofBase];
  let checkpoint: Checkpoint | null = null;
  let packed: PackedWeights = new Map();
  if (needs.weights) {
    checkpoint = await openCheckpoint(dir);
    packed = await packedWeights(quantization, spec, checkpoint);
    const skipped = verifyCheckpoint(spec, checkpoint, tensorNames(packed));
    if (skipped > 0) {
      warnings.push(
        `the checkpoint's ${skipped} tensors of other parts (vision) are left out: the text model alone is held`,
      );
    }
  }
  const adapter = config.adapter === null ? null : await openAdapter(config.adapter);
  return {
    name: config.model!,
    dir,
    spec,
    checkpoint,
    lora:
      adapter !== null
        ? adapterTargets(spec, adapter)
        : needs.lora
          ? resolveLoraTargets(spec, loraSettings(config))
          : null,
    adapter,
    holdDtype: holdDtype(config.torch_dtype, spec.dtype),
    quantization,
    packed,
    warnings: [...warnings, ...(adapter?.warnings ?? [])],
  };
}

/** The adapter's own targets, held against its weights' header. Error: PL_ADAPTER_INVALID. */
function adapterTargets(spec: ModelSpec, adapter: Adapter): ResolvedLora {
  try {
    const lora = resolveLoraTargets(spec, adapter.settings);
    adapterPairs(adapter, lora.targets);
    return lora;
  } catch (error) {
    if (!(error instanceof PipeloraError) || error.code !== "PL_TARGET_MODULES_UNMATCHED") throw error;
    throw new PipeloraError("PL_ADAPTER_INVALID", `${adapter.dir} was made for another model: ${error.message}`, {
      cause: error,
    });
  }
}

function loraSettings(config: LoraFlags): LoraSettings {
  return {
    r: config.lora_r,
    alpha: config.lora_alpha,
    dropout: config.lora_dropout,
    targetModules: config.target_modules ?? "all-linear",
    excludeModules: config.exclude_modules,
    layersToTransform: config.layers_to_transform,
    layersPattern: config.layers_pattern,
    rankPattern: config.rank_pattern,
    alphaPattern: config.alpha_pattern,
    useRslora: config.use_rslora,
    useDora: false,
    modulesToSave: null,
    initLoraWeights: config.init_lora_weights,
  };
}

function holdDtype(asked: Config["torch_dtype"], checkpoint: Dtype): FloatDtype {
  const dtype = asked === "auto" ? checkpoint : asked;
  if (isFloatDtype(dtype)) return dtype;
  throw new PipeloraError(
    "PL_MODEL_UNSUPPORTED",
    `the checkpoint's dtype is ${dtype}; expected float32, float16 or bfloat16`,
    {
      hint: "Say --torch-dtype.",
    },
  );
}
