import { PipeloraError } from "../../../common/errors.ts";
import type { BlockLayer, LinearSpec, ModelSpec } from "../../../models/spec.ts";
import { ARCHITECTURES, type Architecture, blocksOf, type FactorKey } from "./architectures.ts";

/** The architecture that computes what this model does. Error: PL_MODEL_UNSUPPORTED, naming the differences. */
export function architectureFor(spec: ModelSpec): Architecture {
  const known = Object.hasOwn(ARCHITECTURES, spec.family) ? ARCHITECTURES[spec.family]! : [];
  const refused: string[] = [];
  for (const architecture of known) {
    const against = misfits(spec, architecture);
    if (against.length === 0) return architecture;
    refused.push(`its ${architecture.name} has ${against.join("; ")}`);
  }
  const reason = refused.length === 0 ? `it has no architecture for ${spec.architecture}` : refused.join("; or ");
  throw new PipeloraError("PL_MODEL_UNSUPPORTED", `llama.cpp does not compute this model: ${reason}.`, {
    hint: "Merge the adapter (coordinator merge) and serve it with transformers or vLLM.",
  });
}

/** Differences between the architecture and the model; empty where the file gives the model's numbers. */
export function misfits(spec: ModelSpec, architecture: Architecture): string[] {
  const blocks = blocksOf(spec);
  return [
    ...sizesAgainst(spec, architecture),
    ...rulesAgainst(spec, architecture),
    ...factorsAgainst(spec, architecture),
    ...positionsAgainst(blocks, architecture),
    ...biasesAgainst(blocks, architecture),
    ...expertsAgainst(blocks, architecture),
    ...headAgainst(spec, architecture),
  ];
}

function sizesAgainst(spec: ModelSpec, { square, blocks, directQueries }: Architecture): string[] {
  const { shape } = spec;
  const direct = blocksOf(spec).some(({ attention }) => attention.kind === "latent" && attention.qRank === null);
  return [
    ...(direct && directQueries !== shape.blocks ? [`q_lora_rank, but in a model of ${directQueries} blocks`] : []),
    ...(square && shape.heads * shape.headDim !== shape.hidden ? ["heads of hidden_size / num_attention_heads"] : []),
    ...(blocks !== undefined && blocks !== shape.blocks ? [`${blocks} blocks`] : []),
  ];
}

function rulesAgainst(spec: ModelSpec, architecture: Architecture): string[] {
  const { rules } = spec;
  const blocks = blocksOf(spec);
  const has = new Set<string>(architecture.extras ?? []);
  const asks: [boolean, boolean, string][] = [
    [
      rules.activation === (architecture.activation ?? "silu"),
      true,
      `the activation ${architecture.activation ?? "silu"}`,
    ],
    [rules.parallel, has.has("parallel"), "attention and MLP in turn"],
    [rules.norm.kind === "layer", has.has("layer norm"), "RMSNorm"],
    [rules.cap.scores !== null || rules.cap.logits !== null, architecture.caps === true, "no soft caps"],
    [rules.queryScale !== null, architecture.queryScale === true, "no scale of queries by position"],
    [rules.queryScale?.blocks === "unturned", false, "scaled queries in all blocks"],
    [blocks.some(({ chunked }) => chunked === true), false, "no attention within chunks"],
    [blocks.some(({ plainHeadNorms }) => plainHeadNorms === true), false, "no norms of q and k without weights"],
    [blocks.some(({ sinks }) => sinks !== undefined), has.has("sinks"), "no attention sinks"],
    [blocks.some(({ attention }) => attention.kind === "delta"), has.has("delta nets"), "no delta nets"],
    [blocks.some(({ attention }) => attention.kind === "latent"), architecture.latent === true, "no latent attention"],
    [
      blocks.some(({ attention }) => attention.kind === "softmax" && attention.gated),
      has.has("gated attention"),
      "no gates of attention",
    ],
  ];
  const [activation, ...optional] = asks;
  const headNorm = blocks.some(({ qNorm }) => qNorm !== null) ? headNormOf(spec) : undefined;
  const wanted = architecture.headNorm;
  return [
    ...(activation![0] ? [] : [activation![2]]),
    ...optional.flatMap(([asked, given, otherwise]) => (asked && !given ? [otherwise] : [])),
    ...(optional[0]![1] && !rules.parallel ? ["attention and MLP beside each other"] : []),
    ...(optional[1]![1] && rules.norm.kind === "rms" ? ["LayerNorm"] : []),
    // GLM-4.5's smaller model has none; llama.cpp's graph checks whether they are there.
    ...(headNorm === wanted || (headNorm === undefined && architecture.name === "glm4moe")
      ? []
      : [wanted === undefined ? "no norms of q and k" : `norms of q and k: ${wanted}`]),
    ...latentAgainst(spec, blocks),
  ];
}

function headNormOf({ rules: { headNorm } }: ModelSpec): Architecture["headNorm"] {
  if (headNorm.whole) return "whole";
  return headNorm.afterRotary ? "each behind rotary" : "each";
}

/** llama.cpp has one epsilon for all norms of a model. */
function latentAgainst(spec: ModelSpec, blocks: readonly BlockLayer[]): string[] {
  const other = blocks.some(({ attention }) => attention.kind === "latent" && attention.normEps !== spec.shape.rmsEps);
  return other ? [`one epsilon for all norms, ${spec.shape.rmsEps} and not latent vectors' own`] : [];
}

const near = (a: number, b: number) => Math.abs(a - b) <= 1e-6 * Math.max(Math.abs(a), Math.abs(b));

function factorsAgainst(spec: ModelSpec, { factors, latent }: Architecture): string[] {
  const { scale } = spec.rules;
  const fixed = { embedding: 1, residual: 1, logits: 1, scores: spec.shape.headDim ** -0.5, ...factors?.fixed?.(spec) };
  const asked: Record<FactorKey, number> = {
    embedding: scale.embedding,
    residual: scale.residual,
    logits: scale.logits,
    scores: scale.scores ?? spec.shape.headDim ** -0.5,
  };
  return (Object.keys(asked) as FactorKey[]).flatMap((key) => {
    // Latent attention's scores follow from yarn's keys, which are held against the frequencies.
    if (factors?.keys.includes(key) || (key === "scores" && latent === true)) return [];
    return near(asked[key], fixed[key]) ? [] : [`a factor of ${fixed[key]} on ${key}, this model ${asked[key]}`];
  });
}

function positionsAgainst(blocks: readonly BlockLayer[], architecture: Architecture): string[] {
  const { windows, turning } = architecture;
  const against: string[] = [];
  if (windows !== undefined) {
    const period = windowPeriod(blocks);
    if (blocks.some(({ slidingWindow }) => slidingWindow === null) || period === null) {
      if (period !== windows.period) against.push(`windows in all blocks but every ${windows.period}th`);
    }
    const widths = new Set(blocks.flatMap(({ slidingWindow }) => (slidingWindow === null ? [] : [slidingWindow])));
    if (widths.size > 1) against.push("one width for all windows");
  }
  const turns = (block: BlockLayer) =>
    turning === undefined
      ? true
      : turning === "windowed"
        ? block.slidingWindow !== null
        : (block.index + 1) % turning !== 0;
  const softmax = blocks.filter(({ attention }) => attention.kind !== "delta");
  if (softmax.some((block) => (block.rotary !== null) !== turns(block))) {
    against.push(turning === undefined ? "positions in every block" : "positions in other blocks");
  }
  const intervals = blocks.some(({ attention }) => attention.kind === "delta") ? deltaInterval(blocks) : 1;
  if (intervals === null) against.push("full attention in every nth block alone");
  return against;
}

/**
 * The n for which exactly the blocks i with i % n = n - 1 have full attention; null: there is no such n up to twice the number of blocks.
 */
export function windowPeriod(blocks: readonly BlockLayer[]): number | null {
  const full = blocks.findIndex(({ slidingWindow }) => slidingWindow === null);
  const period = full < 0 ? 0 : full + 1;
  if (period === 0) return null;
  return blocks.every(({ slidingWindow }, i) => (slidingWindow === null) === (i % period === period - 1))
    ? period
    : null;
}

/** The n for which exactly the blocks i with (i + 1) % n = 0 have full attention; null: none. */
export function deltaInterval(blocks: readonly BlockLayer[]): number | null {
  const interval = blocks.findIndex(({ attention }) => attention.kind !== "delta") + 1;
  return interval > 0 && blocks.every(({ attention }, i) => (attention.kind !== "delta") === ((i + 1) % interval === 0))
    ? interval
    : null;
}

const KINDS: Readonly<Record<string, NonNullable<Architecture["biases"]>[number]>> = {
  ...{ q: "q, k, v", k: "q, k, v", v: "q, k, v", qkv: "q, k, v", o: "output" },
  ...{ gate: "MLP", up: "MLP", down: "MLP", gate_up: "MLP" },
};

function biasesAgainst(blocks: readonly BlockLayer[], { biases = [] }: Architecture): string[] {
  const kindOf = ({ role }: LinearSpec) => KINDS[role] ?? `${role}`;
  const found = new Set<string>();
  for (const { linears, experts } of blocks) {
    for (const linear of linears) if (linear.bias) found.add(kindOf(linear));
    if (experts?.router.linear.bias) found.add("router");
    if (experts?.linears.some(({ bias }) => bias)) found.add("experts");
  }
  return [...found].filter((kind) => !(biases as readonly string[]).includes(kind)).map((kind) => `no bias of ${kind}`);
}

function expertsAgainst(blocks: readonly BlockLayer[], { experts: has }: Architecture): string[] {
  const sparse = blocks.filter(({ experts }) => experts !== undefined);
  if (sparse.length === 0) return has === undefined || has.leadingDense ? [] : ["experts"];
  if (has === undefined) return ["no experts"];
  const against: string[] = [];
  const firstSparse = blocks.indexOf(sparse[0]!);
  if (sparse.length + firstSparse !== blocks.length) against.push("experts in every block behind the first with any");
  else if (firstSparse > 0 && !has.leadingDense) against.push("experts in every block");
  const { router, clamp } = sparse[0]!.experts!;
  const { score, normalise, factor, groups, correction } = router;
  // Softmax over all experts, divided by the sum of the chosen ones, equals softmax over the chosen ones.
  const asked = score === "softmax" && normalise ? "softmax_of_chosen" : score;
  const given = has.score === "softmax" && has.normalise === true ? "softmax_of_chosen" : has.score;
  if (given !== "key" && asked !== given) against.push(`${given} as the experts' weights`);
  if (sparse.some(({ experts }) => experts!.weighsInput)) against.push("weights on what experts give");
  if (factor !== 1 && !has.factor) against.push("no factor on what experts give");
  if (groups !== null && !has.groups) against.push("no groups of experts");
  if (correction !== null && !has.correction) against.push("no correction of experts' scores");
  if (clamp?.limit !== has.clamp?.limit || clamp?.alpha !== has.clamp?.alpha) against.push("another gate in experts");
  const shared = sparse[0]!.linears.some(({ role }) => role === "up");
  const gated = sparse[0]!.linears.some(({ role }) => role === "shared_gate");
  const wanted = has.shared === undefined ? [false, false] : [true, has.shared === "with a gate"];
  if (shared !== wanted[0] || gated !== wanted[1]) {
    against.push(
      has.shared === undefined
        ? "no shared expert"
        : `a shared expert ${has.shared === "always" ? "" : has.shared}`.trim(),
    );
  }
  return against;
}

function headAgainst(spec: ModelSpec, { head }: Architecture): string[] {
  const own = spec.layers.some((layer) => layer.kind === "head" && !layer.tied);
  return own && head === "tied" ? ["the embedding as head"] : [];
}
