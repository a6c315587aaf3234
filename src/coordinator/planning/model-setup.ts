import { type Dtype, type FloatDtype, isFloatDtype } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import type { Logger } from "../../common/log.ts";
import { changesBase, type LoraSettings } from "../../common/lora-settings.ts";
import type { Config } from "../../config/options.ts";
import { type Adapter, adapterMatrices, baseCopies, openAdapter } from "../../formats/adapter.ts";
import { evaConfigOf } from "../../formats/adapter-config.ts";
import { type Checkpoint, openCheckpoint } from "../../formats/checkpoint.ts";
import type { PackedWeights } from "../../formats/quantized-state.ts";
import { sameValues } from "../../formats/same-values.ts";
import { assertTied } from "../../formats/tied-head.ts";
import { readModelSpec } from "../../models/index.ts";
import { loraRemarks } from "../../models/lora-remarks.ts";
import { type ResolvedLora, resolveLoraTargets } from "../../models/lora-targets.ts";
import type { ModelSpec } from "../../models/spec.ts";
import { type BaseQuantization, baseQuantization, packedWeights, type QuantizationFlags } from "./base-quantization.ts";
import { expertsApart, holdAgainst } from "./held-checkpoint.ts";
import { named } from "./named-adapters.ts";
import { type HubModel, locateAdapter, locateModel } from "./named-models.ts";
import { once } from "./once.ts";

type LoraFlags = Pick<
  Config,
  | "lora_r"
  | "lora_alpha"
  | "lora_dropout"
  | "target_modules"
  | "target_parameters"
  | "exclude_modules"
  | "layers_to_transform"
  | "layers_pattern"
  | "rank_pattern"
  | "alpha_pattern"
  | "use_rslora"
  | "init_lora_weights"
  | "eva_config"
  | "use_dora"
  | "modules_to_save"
  | "bias"
  | "trainable_token_indices"
>;

/** Which model, in what form its weights are held, and which adapter is added. */
export type ModelSettings = QuantizationFlags & LoraFlags & Pick<Config, "model" | "adapter" | "hub" | "torch_dtype">;

/** The model of a run, checked as far as possible without reading a weight. */
export interface ModelSetup {
  /** What an adapter's configuration names. */
  readonly name: string;
  /** Absolute. */
  readonly dir: string;
  /** Where workers of other nodes may fetch it; null: a folder. */
  readonly hub: HubModel | null;
  readonly spec: ModelSpec;
  /** null: only the configuration is needed (plan, parameters). */
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

/** A model whose configuration has been read. Its weights may still have to be fetched. */
export interface DescribedModel extends ModelSetup {
  readonly checkpoint: null;
  /** The same with its checkpoint opened and its headers checked. */
  withWeights(): Promise<ModelSetup>;
}

/**
 * Reads and checks configuration and adapter; of a named model the tokenizer is fetched too. `weights`: whether a checkpoint must be there:
 * that of a folder is opened at once, before the adapter is held against the model. `lora`: whether LoRA settings of flags apply without
 * --adapter.
 */
export async function describeModel(
  config: ModelSettings,
  log: Logger,
  needs: { weights: boolean; lora: boolean },
): Promise<DescribedModel> {
  const [only] = await describeModels([{ label: "", config }], log, needs);
  return only!;
}

/**
 * One base with each of these adapters. The configurations differ in their LoRA settings alone. The base is read and opened once. Errors of
 * one adapter begin with its label.
 */
export async function describeModels(
  adapters: readonly { readonly label: string; readonly config: ModelSettings }[],
  log: Logger,
  needs: { weights: boolean; lora: boolean },
): Promise<DescribedModel[]> {
  const { config: shared } = adapters[0]!;
  const source = await locateModel(shared, log);
  const { name, dir, hub } = source;
  const spec = await readModelSpec(dir);
  const base = baseQuantization(shared, spec);
  const { quantization } = base;
  const openBase = once(async () => {
    await source.fetchWeights();
    const files = await openCheckpoint(dir, spec);
    const checkpoint = expertsApart(spec, files);
    const packed = await packedWeights(quantization, spec, checkpoint);
    const skipped = holdAgainst(spec, files, packed);
    await assertTied(spec, checkpoint);
    const left = `the checkpoint's ${skipped} tensors of other parts (vision) are left out: the text model alone is held`;
    return { checkpoint, packed, left: skipped > 0 ? [left] : [] };
  });
  const describe = async (config: ModelSettings): Promise<DescribedModel> => {
    const adapter =
      config.adapter === null ? null : await openAdapter(await locateAdapter(config.adapter, config.hub, log));
    const withBase = async () => {
      const opened = await openBase();
      if (adapter !== null) await assertSameBases(adapter, spec, opened.checkpoint);
      return opened;
    };
    const opened = needs.weights && hub === null ? await withBase() : null;
    checkInit(config, { adapter, quantization, spec });
    const own = needs.lora && adapter === null ? resolveLoraTargets(spec, loraSettings(config)) : null;
    const warnings = [
      ...[...spec.remarks, ...base.warnings, ...(adapter?.warnings ?? [])],
      ...(own === null ? [] : loraRemarks(spec, own)),
    ];
    const setup: Omit<DescribedModel, "withWeights"> = {
      ...{ name, dir, hub, spec, checkpoint: null },
      lora: adapter === null ? own : adapterTargets(spec, adapter),
      adapter,
      holdDtype: holdDtype(config.torch_dtype, spec.dtype),
      ...{ quantization, packed: new Map(), warnings },
    };
    const withWeights = async () => {
      const { checkpoint, packed, left } = opened ?? (await withBase());
      return { ...setup, checkpoint, packed, warnings: [...warnings, ...left] };
    };
    return { ...setup, withWeights };
  };
  const described: DescribedModel[] = [];
  for (const { label, config } of adapters) {
    try {
      described.push(await describe(config));
    } catch (error) {
      throw named(label, error);
    }
  }
  await source.fetchTokenizer();
  return described;
}

/** The same in one call, including fetching the weights. */
export async function setUpModel(
  config: ModelSettings,
  log: Logger,
  needs: { weights: boolean; lora: boolean },
): Promise<ModelSetup> {
  const described = await describeModel(config, log, needs);
  return needs.weights ? described.withWeights() : described;
}

/** Initialisations that use the base's weights need them in 16 or 32 bits. Error: PL_CONFIG_INVALID. */
function checkInit(
  { init_lora_weights: init }: Pick<Config, "init_lora_weights">,
  { adapter, quantization, spec }: Pick<ModelSetup, "adapter" | "quantization" | "spec">,
): void {
  if (adapter !== null) return;
  const refuse = (message: string, hint: string): never => {
    throw new PipeloraError("PL_CONFIG_INVALID", `init_lora_weights ${init} ${message}`, { hint });
  };
  if (changesBase(init) && quantization !== null) {
    refuse(
      "needs an unquantised base, as in peft: what it takes out of the weights would be rounded with the rest.",
      "Leave quantisation out, or use loftq.",
    );
  }
  if (init !== "loftq") return;
  if (quantization?.settings.method !== "4bit") refuse("is for a base in 4 bits.", "Give --load-in-4bit.");
  if (spec.quantization !== null) {
    refuse(
      "needs the weights before they are quantised, which this checkpoint lacks.",
      "Give the 16-bit checkpoint and --load-in-4bit.",
    );
  }
}

/** Weights of the base that an adapter has saved must equal this model's; else numbers would change silently. Error: PL_ADAPTER_INVALID. */
async function assertSameBases(adapter: Adapter, spec: ModelSpec, checkpoint: Checkpoint): Promise<void> {
  for (const [module, copy] of baseCopies(adapter)) {
    const layer = spec.layers.find((one) => one.name === module && one.kind !== "block");
    const own = layer === undefined || layer.kind === "block" ? null : checkpoint.locate(layer.weight);
    const same = own !== null && (await sameValues(copy, own));
    if (same) continue;
    throw new PipeloraError(
      "PL_ADAPTER_INVALID",
      `${adapter.dir} was trained on another base model: its copy of ${module} differs from this model's.`,
      { hint: "Give the base model that the adapter was trained on." },
    );
  }
}

/** The adapter's own targets, compared with the header of its weights. Error: PL_ADAPTER_INVALID. */
export function adapterTargets(spec: ModelSpec, adapter: Adapter): ResolvedLora {
  try {
    const lora = resolveLoraTargets(spec, adapter.settings);
    adapterMatrices(adapter, lora.matrices);
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
    targetModules: config.target_modules ?? (config.target_parameters === null ? "all-linear" : []),
    targetParameters: config.target_parameters,
    excludeModules: config.exclude_modules,
    layersToTransform: config.layers_to_transform,
    layersPattern: config.layers_pattern,
    rankPattern: config.rank_pattern,
    alphaPattern: config.alpha_pattern,
    useRslora: config.use_rslora,
    useDora: config.use_dora,
    modulesToSave: config.modules_to_save,
    bias: config.bias,
    trainableTokenIndices: config.trainable_token_indices,
    initLoraWeights: config.init_lora_weights,
    evaConfig: config.init_lora_weights === "eva" ? evaConfigOf(config.eva_config ?? {}) : null,
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
