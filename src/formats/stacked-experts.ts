import { dtypeBytes } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import { MX_BLOCK, mxNames, type PackedMx } from "../common/quantization.ts";
import type { Checkpoint } from "./checkpoint.ts";
import type { TensorLocation } from "./safetensors.ts";

/*
 * A checkpoint may hold a block's experts apart, or as slices of one tensor, plain or in MXFP4. The rest of the program asks for one
 * expert's tensors.
 */

/** A tensor of all experts at once, and what stands in each one's slice (ExpertStack of models/experts.ts). */
export interface StackedTensor {
  readonly name: string;
  /** [N, out, in], [N, in, out] where transposed, or a bias [N, out]. */
  readonly shape: readonly number[];
  readonly transposed: boolean;
  /** One below the other: name with "*" for the expert, rows. */
  readonly parts: readonly { readonly name: string; readonly rows: number }[];
  readonly in: number | null;
}

/** A place that holds [in, out] of a shape [out, in]. */
export interface SlicedLocation extends TensorLocation {
  readonly transposed?: boolean;
}

interface Piece {
  readonly stack: StackedTensor;
  readonly expert: number;
  readonly firstRow: number;
  readonly rows: number;
}

/**
 * The checkpoint, in which one expert's tensor can be located inside the stacked tensor, and `aliases` under their stored names. Its list
 * of names is unchanged. Error of locate: PL_TENSOR_MISMATCH.
 */
export function withExperts(
  checkpoint: Checkpoint,
  stacks: readonly StackedTensor[],
  aliases: ReadonlyMap<string, string>,
): Checkpoint {
  const pieces = new Map(
    stacks.filter(({ name }) => checkpoint.has(name)).flatMap((stack) => [...stackedPieces(stack)]),
  );
  const stored = (name: string) => (checkpoint.has(name) ? name : (aliases.get(name) ?? name));
  return {
    ...checkpoint,
    has: (name) => checkpoint.has(stored(name)) || pieces.has(name),
    locate: (name) => {
      const piece = checkpoint.has(name) ? undefined : pieces.get(name);
      return piece === undefined ? checkpoint.locate(stored(name)) : slice(checkpoint, name, piece);
    },
  };
}

function* stackedPieces(stack: StackedTensor): Generator<[string, Piece]> {
  for (let expert = 0; expert < stack.shape[0]!; expert += 1) {
    let firstRow = 0;
    for (const { name, rows } of stack.parts) {
      yield [name.replace("*", String(expert)), { stack, expert, firstRow, rows }];
      firstRow += rows;
    }
  }
}

function slice(checkpoint: Checkpoint, name: string, { stack, expert, firstRow, rows }: Piece): SlicedLocation {
  const whole = checkpoint.locate(stack.name);
  expectShape(checkpoint, stack.name, whole, stack.shape);
  const width = dtypeBytes(whole.dtype);
  const row = width * (stack.in ?? 1);
  const expertBytes = whole.bytes / stack.shape[0]!;
  const offset = whole.offset + expert * expertBytes;
  if (stack.transposed) {
    if (stack.parts.length > 1) throw mismatch(checkpoint, `${name} is no stretch of ${stack.name}`);
    return { ...whole, offset, bytes: expertBytes, shape: [rows, stack.in!], transposed: true };
  }
  return {
    ...whole,
    offset: offset + firstRow * row,
    bytes: rows * row,
    shape: stack.in === null ? [rows] : [rows, stack.in],
  };
}

/** What the checkpoint holds of these stacks in MXFP4: each expert's linears by module path, and the names of what holds them. */
export function packedExperts(
  checkpoint: Checkpoint,
  stacks: readonly StackedTensor[],
): { readonly packed: ReadonlyMap<string, PackedMx<TensorLocation>>; readonly names: readonly string[] } {
  const packed = new Map<string, PackedMx<TensorLocation>>();
  const names: string[] = [];
  for (const stack of stacks) {
    const { blocks, scales } = mxNames(stack.name);
    if (stack.in === null || checkpoint.has(stack.name) || !checkpoint.has(blocks)) continue;
    const count = stack.shape[0]!;
    const out = stack.parts.reduce((sum, { rows }) => sum + rows, 0);
    const groups = stack.in / MX_BLOCK;
    const part = stack.parts.length === 1 ? stack.parts[0]! : null;
    if (part === null) throw mismatch(checkpoint, `${blocks}: packed experts of several projections are not read`);
    const located = (name: string, shape: readonly number[]) => {
      const found = checkpoint.locate(name);
      expectShape(checkpoint, name, found, shape);
      if (found.dtype !== "uint8") throw mismatch(checkpoint, `${name} has dtype ${found.dtype}, expected uint8`);
      names.push(name);
      return (expert: number): TensorLocation => {
        const bytes = found.bytes / count;
        return { ...found, offset: found.offset + expert * bytes, bytes, shape: [bytes] };
      };
    };
    const codes = located(blocks, [count, out, groups, MX_BLOCK / 2]);
    const exponents = located(scales, [count, out, groups]);
    for (let expert = 0; expert < count; expert += 1) {
      packed.set(part.name.replace("*", String(expert)).replace(/\.weight$/, ""), {
        hold: { method: "mxfp4", dtype: "bfloat16" },
        shape: [out, stack.in],
        codes: codes(expert),
        scales: exponents(expert),
      });
    }
  }
  return { packed, names };
}

function expectShape(checkpoint: Checkpoint, name: string, found: TensorLocation, shape: readonly number[]): void {
  if (found.shape.length === shape.length && found.shape.every((extent, axis) => extent === shape[axis])) return;
  throw mismatch(checkpoint, `${name} has shape [${found.shape.join(", ")}], expected [${shape.join(", ")}]`);
}

function mismatch({ dir }: Checkpoint, problem: string): PipeloraError {
  return new PipeloraError("PL_TENSOR_MISMATCH", `${dir}: ${problem}.`, {
    hint: "config.json and the weights must come from the same checkpoint.",
  });
}
