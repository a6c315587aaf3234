import { PipeloraError } from "../common/errors.ts";
import { changesBase, type LoraSettings } from "../common/lora-settings.ts";
import { nearest } from "../common/nearest.ts";
import { type ExpertStack, expertStacks } from "./experts.ts";
import { biasMatrices, resolveBiases, type TrainedBias } from "./kinds/biases.ts";
import { pairMatrices, type SavedBase, savedBases } from "./kinds/lora.ts";
import { matrixElements, type NamedMatrix } from "./kinds/named-matrix.ts";
import { resolveSavedModules, type SavedModule, savedMatrices } from "./kinds/saved-modules.ts";
import { resolveTokenRows, type TokenRows, tokenMatrices } from "./kinds/token-rows.ts";
import { endsWithAny, excludedNames, matchTargets, minimalSuffixes, patternValues } from "./lora-names.ts";
import type { LinearRole, ModelSpec } from "./spec.ts";

/**
 * One module that gets a LoRA pair: A [r, in], B [out, r], y += scale * B(A(dropout(x))). Of the embedding x is a token, in the vocabulary's
 * size; of experts with crossedPairs, in and out change places.
 */
export interface LoraTarget {
  /** Module path, e.g. "transformer.h.0.attn.c_attn" or "lm_head". */
  readonly name: string;
  readonly role: LinearRole | "embedding" | "head" | "experts";
  /** Index into spec.layers of the layer that holds it. */
  readonly layer: number;
  readonly in: number;
  readonly out: number;
  /** Of a parameter of all experts at once: the sum of theirs. */
  readonly r: number;
  readonly alpha: number;
  /** alpha / r, or alpha / sqrt(r) with rsLoRA. */
  readonly scale: number;
  readonly dropout: number;
  /** Position among all pairs of the model in module order, whatever the placement. */
  readonly moduleId: number;
  /** A parameter of all experts at once (target_parameters), and how many those are; absent: a module's weight. */
  readonly stack?: { readonly parameter: string; readonly experts: number };
  /** DoRA: outputs are scaled to a magnitude that is learnt. */
  readonly dora: boolean;
}

export interface ResolvedLora {
  readonly settings: LoraSettings;
  readonly targets: readonly LoraTarget[];
  /** Modules that are trained whole, biases, and rows of the embedding. */
  readonly saved: readonly SavedModule[];
  readonly biases: readonly TrainedBias[];
  readonly tokens: TokenRows | null;
  /** Weights of the base that a file of this adapter holds too. */
  readonly bases: readonly SavedBase[];
  /** Everything that is trained. */
  readonly matrices: readonly NamedMatrix[];
  /** target_modules as an adapter's configuration stores it: names or suffixes that select exactly these targets, or the pattern. */
  readonly targetModules: string | readonly string[];
  /** target_parameters as given; null: none. */
  readonly targetParameters: readonly string[] | null;
  /** Elements of all matrices. */
  readonly trainable: number;
}

type Linear = Pick<LoraTarget, "name" | "role" | "layer" | "in" | "out">;

/**
 * Which linear layers get a LoRA pair, under peft 0.21's matching rules (check_target_module_exists, get_pattern_key).
 * Errors: PL_CONFIG_INVALID for what is not offered, PL_TARGET_MODULES_UNMATCHED where nothing matches.
 */
export function resolveLoraTargets(spec: ModelSpec, settings: LoraSettings): ResolvedLora {
  checkSettings(settings);
  const saved = resolveSavedModules(spec, settings.modulesToSave ?? []);
  const tokens = resolveTokenRows(spec, settings.trainableTokenIndices);
  const linears = linearLayers(spec);
  const parameters = matchParameters(spec, settings, linears);
  const everyLinear =
    typeof settings.targetModules === "string" && settings.targetModules.toLowerCase() === "all-linear";
  const names = spec.modules.map((module) => module.name).filter((name) => name !== "");
  const excluded = settings.excludeModules === null ? new Set<string>() : excludedNames(settings.excludeModules, names);
  const wanted = everyLinear ? linearNames(linears) : matchTargets(settings, names);
  const whole = new Set(saved.map(({ module }) => module));
  const matched = names.filter((name) => wanted.has(name) && !excluded.has(name) && !whole.has(name));

  if (matched.length === 0 && !(parameters.length > 0 && [settings.targetModules].flat().length === 0)) {
    throw unmatched(settings, linears, names, wanted.size > 0);
  }
  const foreign = matched.find((name) => !linears.has(name));
  if (foreign !== undefined) throw notLinear(spec, foreign);

  const twice = parameters.find(({ name }) => matched.includes(name));
  if (twice !== undefined) {
    throw new PipeloraError(
      "PL_CONFIG_INVALID",
      `target_parameters names ${twice.key}, whose module target_modules names too: each weight takes one pair.`,
      { hint: "Leave it out of one of them." },
    );
  }
  const chosen: Chosen[] = [...matched.map((name) => ({ ...linears.get(name)!, key: name })), ...parameters];
  const keys = chosen.map(({ key }) => key);
  const ranks = patternValues("rank_pattern", settings.rankPattern, keys, settings.r);
  const alphas = patternValues("alpha_pattern", settings.alphaPattern, keys, settings.alpha);
  const place = new Map(names.map((name, index) => [name, index]));
  // Wrappers of one module's parameters stand under it, the first parameter's the innermost.
  const position = ({ name, key, stack }: Chosen) => place.get(stack === undefined ? name : parentOf(key))!;
  const targets = chosen
    .sort((a, b) => position(a) - position(b))
    .map(({ key, ...linear }, moduleId): LoraTarget => {
      const r = ranks.get(key)!;
      const alpha = alphas.get(key)!;
      const scale = alpha / (settings.useRslora ? Math.sqrt(r) : r);
      const all = r * (linear.stack?.experts ?? 1);
      return { ...linear, r: all, alpha, scale, dropout: settings.dropout, moduleId, dora: settings.useDora };
    });
  checkKinds(spec, targets, { settings, saved, tokens });
  const biases = resolveBiases(spec, settings.bias, new Set(targets.map(({ name }) => name)));
  const matrices = [
    ...targets.flatMap(pairMatrices),
    ...saved.flatMap(savedMatrices),
    ...biases.flatMap(biasMatrices),
    ...(tokens === null ? [] : tokenMatrices(tokens)),
  ];
  return {
    settings,
    targets,
    saved,
    biases,
    tokens,
    bases: savedBases(spec, targets, settings),
    matrices,
    targetModules: everyLinear ? minimalSuffixes(matched, names) : settings.targetModules,
    targetParameters: settings.targetParameters,
    trainable: matrixElements(matrices),
  };
}

/** A weight that gets a pair, and what rank_pattern and alpha_pattern call it. */
type Chosen = Linear & Pick<LoraTarget, "stack"> & { readonly key: string };

const parentOf = (name: string) => name.slice(0, name.lastIndexOf("."));

/**
 * peft's target_parameters: a parameter's whole name, or its end after a dot. Those of experts [N, …] get N pairs in one, a weight [out,
 * in] a pair as a linear's. Where several of one module's are named, each wraps those before it: "experts.base_layer", then "experts".
 */
function matchParameters(spec: ModelSpec, settings: LoraSettings, linears: ReadonlyMap<string, Linear>): Chosen[] {
  const wanted = settings.targetParameters ?? [];
  if (wanted.length === 0) return [];
  const refuse = (message: string, hint: string): never => {
    throw new PipeloraError("PL_CONFIG_INVALID", message, { hint });
  };
  if (settings.dropout > 0) {
    refuse(
      `target_parameters does not work with lora_dropout ${settings.dropout}: no input stands before a parameter.`,
      "Set lora_dropout to 0, as peft asks for too.",
    );
  }
  const stacks = new Map<
    string,
    { readonly stack: ExpertStack; readonly layer: number; readonly experts: number; readonly crossed: boolean }
  >();
  const routers = new Map<string, Linear>();
  spec.layers.forEach((layer, index) => {
    if (layer.kind !== "block" || layer.experts === undefined) return;
    const { linear } = layer.experts.router;
    routers.set(linear.name, { name: linear.name, role: "router", layer: index, in: linear.in, out: linear.out });
    for (const stack of expertStacks(layer.experts)) {
      const { count: experts, crossedPairs: crossed } = layer.experts;
      stacks.set(stack.name, { stack, layer: index, experts, crossed });
    }
  });
  const parameters = spec.tensors.filter(({ name, kind }) => kind === "parameter" && endsWithAny(name, wanted));
  const unmet = wanted.find((one) => !parameters.some(({ name }) => endsWithAny(name, [one])));
  if (unmet !== undefined) {
    const all = [...stacks.keys(), ...spec.tensors.map(({ name }) => name)];
    const near = [
      ...new Set(
        nearest(
          unmet,
          all.map((name) => name.split(".").slice(-3).join(".")),
        ),
      ),
    ].slice(0, 5);
    throw new PipeloraError(
      "PL_TARGET_MODULES_UNMATCHED",
      `target_parameters "${unmet}" matches no parameter of this model.`,
      {
        hint:
          near.length > 0
            ? `Did you mean ${near.join(", ")}?`
            : "Name parameters as transformers 5 does, mlp.experts.gate_up_proj.",
      },
    );
  }
  const later = new Map<string, number>();
  for (const { name } of parameters) later.set(parentOf(name), (later.get(parentOf(name)) ?? 0) + 1);
  return parameters.map(({ name, shape }): Chosen => {
    const module = parentOf(name);
    const left = later.get(module)! - 1;
    later.set(module, left);
    const path = module + ".base_layer".repeat(left);
    const found = stacks.get(name);
    if (found !== undefined && found.stack.in !== null) {
      const { stack, layer, experts, crossed } = found;
      const rows = stack.parts.reduce((sum, { rows }) => sum + rows, 0);
      const [input, out] = crossed ? [rows, stack.in!] : [stack.in!, rows];
      return { key: name, name: path, role: "experts", layer, in: input, out, stack: { parameter: name, experts } };
    }
    const linear = name.endsWith(".weight") ? (routers.get(module) ?? linears.get(module)) : undefined;
    if (linear === undefined) {
      return refuse(
        `target_parameters names ${name} [${shape.join(", ")}]: only weights of linears, routers and experts get LoRA.`,
        "Name mlp.experts.gate_up_proj, mlp.experts.down_proj, or a linear's weight.",
      );
    }
    if (left > 0) refuse(`target_parameters names several parameters of ${module}.`, "Name its weight alone.");
    return { ...linear, key: name };
  });
}

function checkSettings(settings: LoraSettings): void {
  const refuse = (message: string, hint: string): never => {
    throw new PipeloraError("PL_CONFIG_INVALID", message, { hint });
  };
  if (!Number.isInteger(settings.r) || settings.r < 1)
    refuse(`lora_r must be a positive integer, got ${settings.r}.`, "Give a rank such as 8.");
  if (!(settings.dropout >= 0 && settings.dropout < 1)) {
    refuse(`lora_dropout must lie in [0, 1), got ${settings.dropout}.`, "Give a probability such as 0.1.");
  }
  const init = settings.initLoraWeights;
  if (typeof init === "string" && !/^(gaussian|orthogonal|pissa(_niter_\d{1,3})?|olora|loftq|eva)$/.test(init)) {
    refuse(
      `init_lora_weights "${init}" is not supported.`,
      'Use true, false, "gaussian", "orthogonal", "pissa", "pissa_niter_N", "olora", "loftq" or "eva".',
    );
  }
  const patterns = Object.keys(settings.rankPattern).length + Object.keys(settings.alphaPattern).length > 0;
  if (changesBase(init) && settings.useRslora && patterns) {
    refuse(
      `init_lora_weights ${init} with use_rslora takes no rank_pattern and no alpha_pattern: the saved adapter could not be converted, as in peft.`,
      "Leave one of them out.",
    );
  }
  if (typeof settings.targetModules === "string") {
    if (settings.layersToTransform !== null) {
      refuse(
        "layers_to_transform needs target_modules as a list, not a pattern.",
        "Name the modules, or put the layers into the pattern.",
      );
    }
    if (settings.layersPattern !== null && settings.layersPattern.length > 0) {
      refuse(
        "layers_pattern needs target_modules as a list, not a pattern.",
        "Name the modules, or put the layers into the pattern.",
      );
    }
  }
  if (settings.layersPattern !== null && settings.layersPattern.length > 0 && settings.layersToTransform === null) {
    refuse("layers_pattern without layers_to_transform selects nothing.", "Give layers_to_transform too.");
  }
}

/** Refuses combinations that peft refuses too, and those that are not offered. */
function checkKinds(
  spec: ModelSpec,
  targets: readonly LoraTarget[],
  { settings, saved, tokens }: { readonly settings: LoraSettings } & Pick<ResolvedLora, "saved" | "tokens">,
): void {
  const refuse = (message: string, hint: string): never => {
    throw new PipeloraError("PL_CONFIG_INVALID", message, { hint });
  };
  const embedding = targets.find(({ role }) => role === "embedding");
  if (settings.useDora) {
    const stack = targets.find((target) => target.stack !== undefined);
    if (stack !== undefined) {
      refuse(
        `use_dora does not work with target_parameters ${stack.stack!.parameter}: experts that are one parameter have no DoRA, as in peft.`,
        "Leave one of them out.",
      );
    }
  }
  const init = settings.initLoraWeights;
  if (changesBase(init) || init === "loftq") {
    const odd = targets.find(({ role, stack }) => role === "embedding" || stack !== undefined);
    if (settings.useDora || odd !== undefined) {
      refuse(
        `init_lora_weights ${init} is for pairs of linear layers, not for ${odd === undefined ? "use_dora" : odd.name}.`,
        "Leave one of them out.",
      );
    }
    if (spec.tied.length > 0 && targets.some(({ role }) => role === "head")) {
      refuse(
        `init_lora_weights ${init} on a head that shares the embedding's weight is not offered.`,
        "Leave the head out.",
      );
    }
    const narrow = targets.find(({ r, in: input, out }) => r > Math.min(input, out));
    if (narrow !== undefined) {
      refuse(
        `init_lora_weights ${init}: ${narrow.name} [${narrow.out}, ${narrow.in}] has no rank of ${narrow.r}.`,
        "Lower lora_r, or set rank_pattern for it.",
      );
    }
  }
  if (init === "orthogonal") {
    const odd = targets.find(({ r, role }) => r % 2 !== 0 && role !== "embedding");
    if (odd !== undefined) {
      refuse(
        `init_lora_weights orthogonal needs an even rank, ${odd.name} has ${odd.r}.`,
        "Give an even lora_r, or set rank_pattern for it.",
      );
    }
  }
  if (init === "eva") {
    const odd = targets.find(
      ({ role, stack }) => ["embedding", "head", "router"].includes(role) || stack !== undefined,
    );
    if (settings.useDora || odd !== undefined) {
      refuse(
        `init_lora_weights eva is for pairs of the blocks' linear layers, not for ${odd === undefined ? "use_dora" : odd.name}.`,
        "Leave one of them out.",
      );
    }
  }
  if (tokens !== null && (embedding !== undefined || saved.some(({ module }) => module === tokens.module))) {
    refuse(
      `trainable_token_indices and ${embedding === undefined ? "modules_to_save" : "target_modules"} both train ${tokens.module}.`,
      "Leave it out of one of them.",
    );
  }
  const shared = tokens?.head?.module;
  const pair = targets.some(({ name }) => name === shared);
  if (shared !== undefined && (pair || saved.some(({ module }) => module === shared))) {
    refuse(
      `trainable_token_indices trains rows of ${shared} too, which shares the embedding's weight: ${pair ? "target_modules" : "modules_to_save"} can't train it beside.`,
      "Leave it out of one of them.",
    );
  }
}

function linearLayers(spec: ModelSpec): ReadonlyMap<string, Linear> {
  const linears = new Map<string, Linear>();
  spec.layers.forEach((layer, index) => {
    if (layer.kind === "block") {
      for (const { name, role, in: input, out } of layer.linears)
        linears.set(name, { name, role, layer: index, in: input, out });
    }
    if (layer.kind === "embedding") {
      const { vocab, hidden } = spec.shape;
      linears.set(layer.name, { name: layer.name, role: "embedding", layer: index, in: vocab, out: hidden });
    }
    if (layer.kind === "head") {
      linears.set(layer.name, {
        name: layer.name,
        role: "head",
        layer: index,
        in: spec.shape.hidden,
        out: spec.shape.vocab,
      });
    }
  });
  return linears;
}

/** "all-linear" leaves the embedding and the output head out. */
function linearNames(linears: ReadonlyMap<string, Linear>): Set<string> {
  const ends = ["embedding", "head"];
  return new Set([...linears.values()].filter(({ role }) => !ends.includes(role)).map(({ name }) => name));
}

function unmatched(
  settings: LoraSettings,
  linears: ReadonlyMap<string, Linear>,
  names: readonly string[],
  excluded: boolean,
): PipeloraError {
  const leaves = [
    ...new Set(
      [...linears.values()].filter(({ role }) => role !== "embedding").map(({ name }) => name.split(".").at(-1)!),
    ),
  ];
  const given = [settings.targetModules].flat();
  if (excluded) {
    return new PipeloraError(
      "PL_TARGET_MODULES_UNMATCHED",
      "exclude_modules leaves out every module that target_modules names.",
      {
        hint: "Narrow exclude_modules.",
      },
    );
  }
  const near = [...new Set(given.flatMap((name) => [...nearest(name, leaves), ...nearest(name, names)]))].slice(0, 5);
  const where =
    settings.layersToTransform === null ? "" : ` in layers ${[settings.layersToTransform].flat().join(", ")}`;
  return new PipeloraError(
    "PL_TARGET_MODULES_UNMATCHED",
    `target_modules ${given.join(", ")} match no module of this model${where}.`,
    {
      hint: `${near.length > 0 ? `Did you mean ${near.join(", ")}? ` : ""}Its linear layers are ${leaves.join(", ")}.`,
    },
  );
}

function notLinear(spec: ModelSpec, name: string): PipeloraError {
  const className = spec.modules.find((module) => module.name === name)?.className ?? "module";
  return new PipeloraError(
    "PL_CONFIG_INVALID",
    `target_modules names ${name} of class ${className}: only linear layers and the embedding can get LoRA.`,
    {
      hint: "Name linear layers, or leave this one out with exclude_modules.",
    },
  );
}
