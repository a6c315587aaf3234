import { dtypeBytes, type FloatDtype } from "../../common/dtype.ts";
import { BLOCK_SIZE, MX_BLOCK, NESTED_BLOCK_SIZE } from "../../common/quantization.ts";
import { type GpuProduct, roundUp, sum, tailColumns } from "./gpu-products.ts";
import type { Holding } from "./held-sizes.ts";

const FLOAT32 = 4;

/**
 * Bytes of each piece of device memory that holds a product's weight, as native/ops/cuda/base/linear_weight.cpp asks for them: 16 or
 * 32 bits with LoRA's tail and rows on lines of 64 elements; 4 bits with their scales a part; 8 bits with rows on lines of 16. In
 * e4m3 the scales of rows and columns come on top, and a weight that is not quantised is held as its two expansions alone.
 */
export function heldAllocations(product: GpuProduct, holding: Holding, computeDtype: FloatDtype): number[] {
  const bias = product.bias ? [product.out * dtypeBytes(computeDtype)] : [];
  const { quantization } = holding;
  const scalesOfE4m3 = product.e4m3 ? [(product.out + matricesOf(product) * product.in) * FLOAT32] : [];
  const beside = [...scalesOfE4m3, ...bias];
  if (product.packed === "mxfp4") {
    const elements = product.partRows.map((rows) => rows * product.in);
    const codes = elements.map((count) => roundUp(Math.floor(count / 2) + 1, 16));
    const places = elements.length > LISTED_PARTS ? [elements.length * PLACE_BYTES] : [];
    return [sum(codes), ...elements.map((count) => (count / MX_BLOCK) * FLOAT32), ...places, ...beside];
  }
  if (!product.quantized || quantization.method === "none") {
    const held = product.e4m3 ? expansions(product) : [paddedElements(product) * dtypeBytes(holding.dtype)];
    return [...held, ...beside];
  }
  if (quantization.method === "8bit")
    return [roundUp(product.out, 4) * roundUp(product.in, 16), product.out * FLOAT32, ...beside];
  const scales = product.partRows.map((rows) => {
    const blocks = Math.ceil((rows * product.in) / BLOCK_SIZE);
    return quantization.doubleQuant ? (Math.ceil(blocks / NESTED_BLOCK_SIZE) + 4) * FLOAT32 + blocks : blocks * FLOAT32;
  });
  const codes = product.partRows.map((rows) => roundUp(Math.floor((rows * product.in) / 2) + 1, 16));
  const places = product.partRows.length > LISTED_PARTS ? [product.partRows.length * PLACE_BYTES] : [];
  return [sum(codes), ...scales, ...places, ...beside];
}

/** A 4-bit weight of more parts keeps a list of where each is (CudaLinear::list_equal_parts). */
const LISTED_PARTS = 4;
const PLACE_BYTES = 72;

function matricesOf({ matrices = 1 }: GpuProduct): number {
  return matrices;
}

/** In e4m3, the weight for the forward pass and its transpose for the backward pass. */
function expansions({ in: input, out }: GpuProduct): number[] {
  return [input * out, input * out];
}

/**
 * Bytes of what products read of a weight, both ways: in the compute dtype with room for LoRA, rows [out + tail], lines of 64 elements;
 * or in e4m3 twice.
 */
export function expandedBytes(product: GpuProduct, computeDtype: FloatDtype): number {
  return product.e4m3 ? sum(expansions(product)) : paddedElements(product) * dtypeBytes(computeDtype);
}

/** Whether products with this weight run on an expanded copy of it, which it does not hold itself. */
export function isExpanded(product: GpuProduct, holding: Holding, computeDtype: FloatDtype): boolean {
  return product.quantized || (!product.e4m3 && holding.dtype !== computeDtype);
}

/**
 * Bytes in which the weights of these products take turns to be expanded: one place a shape (ExpandedPool in
 * native/ops/cuda/base/linear_weight.h). The blocks of a model share the places of one block.
 */
export function expansionBytes(products: readonly GpuProduct[], holding: Holding, computeDtype: FloatDtype): number {
  const places = products
    .filter((product) => isExpanded(product, holding, computeDtype))
    .flatMap((product): (readonly [shape: string, bytes: number])[] => {
      const { in: input, out } = product;
      const bytes = input * out;
      if (product.e4m3)
        return [
          [`e4m3 ${out},${input}`, bytes],
          [`e4m3 ${matricesOf(product) * input},${out / matricesOf(product)}`, bytes],
        ];
      return [[paddedShape(product).join(), expandedBytes(product, computeDtype)]];
    });
  // While it loads, a weight that is held in e4m3 alone is there as it comes, too. An expert's gate, up and down come one after the other.
  const coming = (ofExperts: boolean) =>
    products
      .filter((product) => product.e4m3 && !product.quantized && (product.matrices !== undefined) === ofExperts)
      .map((product) => paddedElements(product) * dtypeBytes(holding.dtype));
  return sum([...new Map(places).values()]) + Math.max(0, ...coming(false), sum(coming(true)));
}

function paddedShape(product: GpuProduct): readonly [rows: number, stride: number] {
  const tail = tailColumns(product);
  return [product.out + tail, roundUp(product.in + tail, 64)];
}

function paddedElements(product: GpuProduct): number {
  const [rows, stride] = paddedShape(product);
  return rows * stride;
}

/** The driver maps memory in pages of 2 MiB; smaller requests share one. */
const PAGE = 2 ** 21;

/** Bytes beyond what was asked for that the driver takes for these allocations. */
export function pagePadding(allocations: readonly number[]): number {
  return sum(allocations.map((bytes) => (bytes < PAGE / 2 ? 0 : roundUp(bytes, PAGE) - bytes)));
}
