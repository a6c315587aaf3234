import { PipeloraError } from "../../common/errors.ts";
import type { LoraSettings } from "../../common/lora-settings.ts";
import type { ModelSpec } from "../spec.ts";
import type { NamedMatrix } from "./named-matrix.ts";

/** Rows of the embedding that are trained instead of all of it (peft's trainable_token_indices). */
export interface TokenRows {
  readonly module: string;
  readonly layer: number;
  /** In the order of the matrix's rows. */
  readonly ids: readonly number[];
  readonly columns: number;
  /** A head that shares the embedding's weight, and so these rows; null: it has its own. */
  readonly head: { readonly module: string; readonly layer: number } | null;
}

/** Error: PL_CONFIG_INVALID for ids outside the vocabulary, another module than the embedding, and what is not offered. */
export function resolveTokenRows(spec: ModelSpec, indices: LoraSettings["trainableTokenIndices"]): TokenRows | null {
  if (indices === null) return null;
  const refuse = (message: string, hint: string): never => {
    throw new PipeloraError("PL_CONFIG_INVALID", `trainable_token_indices ${message}`, { hint });
  };
  const embedding = spec.layers[0]!.name;
  const given: readonly (readonly [string, readonly number[]])[] = Array.isArray(indices)
    ? [[embedding, indices as readonly number[]]]
    : Object.entries(indices as Readonly<Record<string, readonly number[]>>);
  const foreign = given.find(([name]) => !(embedding === name || embedding.endsWith(`.${name}`)));
  if (foreign !== undefined) {
    refuse(`names ${foreign[0]}: only rows of the embedding (${embedding}) are trained.`, "Give a list of ids alone.");
  }
  const ids = given.flatMap(([, own]) => own);
  const { vocab, hidden } = spec.shape;
  const bad = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= vocab);
  if (bad !== undefined)
    refuse(`names token ${bad}: ids are 0 to ${vocab - 1}.`, "Name ids of this model's vocabulary.");
  const twice = ids.find((id, at) => ids.indexOf(id) !== at);
  if (twice !== undefined) refuse(`names token ${twice} twice.`, "Name each id once.");
  const last = spec.layers.length - 1;
  const own = spec.layers[last]!;
  const head = own.kind === "head" && own.tied ? { module: own.name, layer: last } : null;
  return ids.length === 0 ? null : { module: embedding, layer: 0, ids, columns: hidden, head };
}

export function tokenMatrices({ module, layer, ids, columns, head }: TokenRows): NamedMatrix[] {
  const nameOf = (of: string) => `${of}.token_adapter.trainable_tokens_delta`;
  const name = nameOf(module);
  const twin = head === null ? {} : { twin: { name: nameOf(head.module), layer: head.layer } };
  return [{ name, parameter: `${name}.default`, shape: [ids.length, columns], layer, ...twin }];
}
