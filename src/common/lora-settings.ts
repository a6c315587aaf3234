/** LoRA's settings under peft's meanings (LoraConfig, peft 0.21). */
export interface LoraSettings {
  readonly r: number;
  readonly alpha: number;
  readonly dropout: number;
  /** A string is a regular expression that must match a module's whole name, or "all-linear"; a list matches exactly or as a dotted suffix. */
  readonly targetModules: string | readonly string[];
  /** Parameters' names or dotted suffixes of them (experts that are one parameter); null: none. */
  readonly targetParameters: readonly string[] | null;
  readonly excludeModules: string | readonly string[] | null;
  readonly layersToTransform: number | readonly number[] | null;
  readonly layersPattern: string | readonly string[] | null;
  /** Regular expression on the end of a module's name -> r for it; the first that matches counts. */
  readonly rankPattern: Readonly<Record<string, number>>;
  readonly alphaPattern: Readonly<Record<string, number>>;
  readonly useRslora: boolean;
  readonly useDora: boolean;
  readonly modulesToSave: readonly string[] | null;
  /** Which of the model's own biases are trained: none, all, or those of modules that get a pair. */
  readonly bias: "none" | "all" | "lora_only";
  /** Rows of the embedding that are trained: ids, or ids by the embedding's name; null: none. */
  readonly trainableTokenIndices: readonly number[] | Readonly<Record<string, readonly number[]>> | null;
  /** true: kaiming-uniform A, zero B; false: both random; "gaussian", "orthogonal"; of the base's weights: "pissa", "pissa_niter_N", "olora", "loftq"; of the rows: "eva". */
  readonly initLoraWeights: boolean | string;
  /** Of "eva"; null: none, or what an adapter's file does not say. */
  readonly evaConfig: EvaConfig | null;
}

/** How EVA (Paischer et al. 2024) initialises (EvaConfig, peft 0.21). */
export interface EvaConfig {
  /** A module gets at most so many times its rank; 1: ranks stay what they are. */
  readonly rho: number;
  /** A component has stayed what it was from this cosine on. */
  readonly tau: number;
  /** Tokens whose label is `labelMaskValue` do not count. */
  readonly useLabelMask: boolean;
  readonly labelMaskValue: number;
  /** Components are divided by the roots of their singular values. */
  readonly whiten: boolean;
  /** alpha goes with the rank, so that the scaling stays. */
  readonly adjustScalingFactors: boolean;
}

export const DEFAULT_EVA: EvaConfig = {
  rho: 2,
  tau: 0.99,
  useLabelMask: true,
  labelMaskValue: -100,
  whiten: false,
  adjustScalingFactors: true,
};

/** Initialisations that compute the first A and B from the base's weights. */
export function changesBase(init: LoraSettings["initLoraWeights"]): boolean {
  return typeof init === "string" && /^(pissa(_niter_\d+)?|olora)$/.test(init);
}

/** peft's defaults; a user's settings are merged over them. */
export const DEFAULT_LORA_SETTINGS: Omit<LoraSettings, "targetModules"> = {
  r: 8,
  alpha: 8,
  dropout: 0,
  targetParameters: null,
  excludeModules: null,
  layersToTransform: null,
  layersPattern: null,
  rankPattern: {},
  alphaPattern: {},
  useRslora: false,
  useDora: false,
  modulesToSave: null,
  bias: "none",
  trainableTokenIndices: null,
  initLoraWeights: true,
  evaConfig: null,
};
