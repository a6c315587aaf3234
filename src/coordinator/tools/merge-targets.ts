import { PipeloraError } from "../../common/errors.ts";
import type { PairValues } from "../../formats/lora-init.ts";
import { expertStacks, modelExperts, ofExpert, storedAliases } from "../../models/experts.ts";
import { biasMatrices } from "../../models/kinds/biases.ts";
import { savedMatrices } from "../../models/kinds/saved-modules.ts";
import { tokenMatrices } from "../../models/kinds/token-rows.ts";
import type { LoraTarget, ResolvedLora } from "../../models/lora-targets.ts";
import type { ExpertsSpec, ModelSpec } from "../../models/spec.ts";

/** A part of a stored tensor that a pair's product is added to: a matrix [out, in] at `first` elements. */
export interface MergePart {
  readonly first: number;
  readonly out: number;
  readonly in: number;
  /** A [r, in] and B [out, r] of that matrix. */
  readonly pair: (values: PairValues) => PairValues;
}

/** A stored tensor, or rows of it, that an adapter holds itself: its matrix's name. */
export interface Replacement {
  readonly matrix: string;
  /** Of the tensor, in the matrix's order; null: all of it. */
  readonly rows: readonly number[] | null;
}

/** Stored tensors that are trained whole, biases, and the embedding of which rows are trained. */
export function replacements({ saved, biases, tokens }: ResolvedLora): Map<string, Replacement> {
  const found = new Map<string, Replacement>();
  for (const one of saved) found.set(`${one.module}.weight`, { matrix: savedMatrices(one)[0]!.name, rows: null });
  for (const one of biases) found.set(`${one.module}.bias`, { matrix: biasMatrices(one)[0]!.name, rows: null });
  if (tokens !== null) {
    const own = { matrix: tokenMatrices(tokens)[0]!.name, rows: tokens.ids };
    found.set(`${tokens.module}.weight`, own);
    if (tokens.head !== null) found.set(`${tokens.head.module}.weight`, own);
  }
  return found;
}

/** What a stored tensor gets. */
export interface MergeTarget {
  readonly target: LoraTarget;
  readonly parts: readonly MergePart[];
}

/**
 * Which stored tensors an adapter changes, by name. `holds`: whether the checkpoint holds one of that name. Error: PL_ADAPTER_INVALID for
 * experts that are packed in MXFP4, to which nothing can be added.
 */
export function mergeTargets(
  spec: ModelSpec,
  targets: readonly LoraTarget[],
  holds: (name: string) => boolean,
): Map<string, MergeTarget> {
  const aliases = storedAliases(spec);
  const found = new Map<string, MergeTarget>();
  for (const target of targets) {
    if (target.role === "embedding") {
      // The table is [vocab, hidden]: W + s Aᵀ Bᵀ.
      const { in: vocab, out: hidden, r } = target;
      const turned = ({ a, b }: PairValues) => ({ a: transposed(b, hidden, r), b: transposed(a, r, vocab) });
      found.set(`${target.name}.weight`, { target, parts: [{ first: 0, out: vocab, in: hidden, pair: turned }] });
      continue;
    }
    if (target.stack === undefined) {
      const name = `${target.name}.weight`;
      const part = { first: 0, out: target.out, in: target.in, pair: (values: PairValues) => values };
      found.set(aliases.get(name) ?? name, { target, parts: [part] });
      continue;
    }
    for (const [name, parts] of stackParts(spec, target, holds)) found.set(name, { target, parts });
  }
  return found;
}

function stackParts(
  spec: ModelSpec,
  target: LoraTarget,
  holds: (name: string) => boolean,
): [string, readonly MergePart[]][] {
  const { parameter, experts: count } = target.stack!;
  const experts = modelExperts(spec).find(({ name }) => parameter.startsWith(`${name}.`))!;
  refusePacked(experts, parameter);
  const stack = expertStacks(experts).find(({ name }) => name === parameter)!;
  const { in: input, out } = target;
  // Of crossed pairs W + s B A has the parameter's own order.
  const turns = experts.transposed && !experts.crossedPairs;
  const numbers = Array.from({ length: count }, (_, expert) => expert);
  if (holds(parameter)) {
    const parts = numbers.map((expert): MergePart => {
      const own = (values: PairValues) => expertPair(values, target, { expert, first: 0, rows: out });
      const first = expert * out * input;
      if (!turns) return { first, out, in: input, pair: own };
      // The tensor has Wᵀ [in, out]: Wᵀ + s Aᵀ Bᵀ.
      const r = target.r / count;
      const turned = (values: PairValues) => {
        const { a, b } = own(values);
        return { a: transposed(b, out, r), b: transposed(a, r, input) };
      };
      return { first, out: input, in: out, pair: turned };
    });
    return [[parameter, parts]];
  }
  if (experts.crossedPairs) {
    throw new PipeloraError(
      "PL_ADAPTER_INVALID",
      `${parameter} is adapted, but the checkpoint holds each expert apart.`,
      {
        hint: "Merge onto a checkpoint in the family's own layout, which holds all experts at once.",
      },
    );
  }
  return numbers.flatMap((expert) => {
    let row = 0;
    return stack.parts.map(({ name, rows }): [string, readonly MergePart[]] => {
      const first = row;
      row += rows;
      const pair = (values: PairValues) => expertPair(values, target, { expert, first, rows });
      return [ofExpert(name, expert), [{ first: 0, out: rows, in: input, pair }]];
    });
  });
}

function refusePacked({ packed }: ExpertsSpec, parameter: string): void {
  if (packed === null) return;
  throw new PipeloraError("PL_ADAPTER_INVALID", `${parameter} is adapted, but the checkpoint holds it in ${packed}.`, {
    hint: "Merge onto the 16-bit checkpoint, or keep the adapter beside the base model.",
  });
}

/** One expert's pair, B's rows [first, first + rows), of a pair of all: peft has A expert by expert, B's columns rank by rank. */
function expertPair(
  { a, b }: PairValues,
  { in: input, r: all, stack }: LoraTarget,
  { expert, first, rows }: { readonly expert: number; readonly first: number; readonly rows: number },
): PairValues {
  const count = stack!.experts;
  const r = all / count;
  const own = new Float32Array(rows * r);
  for (let row = 0; row < rows; row++) {
    for (let rank = 0; rank < r; rank++) own[row * r + rank] = b[(first + row) * all + rank * count + expert]!;
  }
  return { a: a.slice(expert * r * input, (expert + 1) * r * input), b: own };
}

function transposed(values: Float32Array, rows: number, columns: number): Float32Array {
  const turned = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) turned[column * rows + row] = values[row * columns + column]!;
  }
  return turned;
}
