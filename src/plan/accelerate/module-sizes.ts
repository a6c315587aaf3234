import { DTYPE_BITS, type Dtype, elementCount } from "../../common/dtype.ts";
import type { ModelSpec } from "../../models/spec.ts";
import { parentOf } from "./module-tree.ts";

/** Bytes under every dotted prefix; "" is the whole model. With int4 there may be half bytes. */
export type ModuleSizes = ReadonlyMap<string, number>;

/** The dtype that accelerate sizes weights in; "int4" is its CustomDtype.INT4. */
export type SizingDtype = Dtype | "int4";

export interface Sizing {
  /** Null: every tensor has its own dtype. */
  readonly target: SizingDtype | null;
  /** The dtype in which other tensors are loaded. */
  readonly load: Dtype;
  /** Tensors that keep a dtype of their own, whatever the target is. */
  readonly special: ReadonlyMap<string, Dtype>;
}

/** As transformers asks for it: weights at the load dtype, or with 8 or 4 bits all but the output head at int8 or INT4. */
export function sizingOf(spec: ModelSpec, quantization: "none" | "int8" | "int4", load: Dtype): Sizing {
  if (quantization === "none") return { target: load, load, special: new Map() };
  const head = spec.layers.find((layer) => layer.kind === "head");
  const special = new Map(head === undefined || head.tied ? [] : [[head.weight, load] as const]);
  return { target: quantization, load, special };
}

/** accelerate's compute_module_sizes: all parameters and buffers, a shared tensor only under its first name. */
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
