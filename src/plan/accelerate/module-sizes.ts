import { DTYPE_BITS, type Dtype, elementCount } from "../../common/dtype.ts";
import type { ModelSpec } from "../../models/spec.ts";
import { parentOf } from "./module-tree.ts";

/** Bytes under every dotted prefix, "" the whole model. INT4 makes halves possible. */
export type ModuleSizes = ReadonlyMap<string, number>;

/** dtype that accelerate is told the weights will take; "int4" is its CustomDtype.INT4. */
export type SizingDtype = Dtype | "int4";

export interface Sizing {
  /** null: every tensor at its own dtype. */
  readonly target: SizingDtype | null;
  /** dtype in which tensors without one of their own are loaded. */
  readonly load: Dtype;
  /** Tensors sized at a dtype of their own, whatever the target. */
  readonly special: ReadonlyMap<string, Dtype>;
}

/** As transformers calls it: a plain load sizes at the load dtype; 8 and 4 bits size all but the output head at int8 / INT4. */
export function sizingOf(spec: ModelSpec, quantization: "none" | "int8" | "int4", load: Dtype): Sizing {
  if (quantization === "none") return { target: load, load, special: new Map() };
  const head = spec.layers.find((layer) => layer.kind === "head");
  const special = new Map(head === undefined || head.tied ? [] : [[head.weight, load] as const]);
  return { target: quantization, load, special };
}

/** accelerate's compute_module_sizes: unique parameters and all buffers, a shared tensor under its first name only. */
export function moduleSizes(spec: ModelSpec, sizing: Sizing): ModuleSizes {
  const sizes = new Map<string, number>([["", 0]]);
  for (const tensor of spec.tensors) {
    const native = tensor.dtype ?? sizing.load;
    const bytes = (elementCount(tensor.shape) * sizingBits(tensor.name, native, sizing)) / 8;
    for (let name = tensor.name; ; name = parentOf(name)) {
      sizes.set(name, (sizes.get(name) ?? 0) + bytes);
      if (name === "") break;
    }
  }
  return sizes;
}

function sizingBits(name: string, native: Dtype, { target, special }: Sizing): number {
  const own = special.get(name);
  if (own !== undefined) return bits(own);
  if (target === null || /^(u?int|bool)/.test(native)) return bits(native);
  return Math.min(bits(target), bits(native));
}

/** accelerate counts a bool as an eighth of a byte. */
function bits(dtype: SizingDtype): number {
  if (dtype === "int4") return 4;
  return dtype === "bool" ? 1 : DTYPE_BITS[dtype];
}
