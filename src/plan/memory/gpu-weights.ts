import { dtypeBytes, type FloatDtype } from "../../common/dtype.ts";
import { BLOCK_SIZE, MX_BLOCK, NESTED_BLOCK_SIZE } from "../../common/quantization.ts";
import { type GpuProduct, roundUp, sum, tailColumns } from "./gpu-products.ts";
import type { Holding } from "./held-sizes.ts";

const FLOAT32 = 4;

/**
 * Bytes of each allocation that holds a product's weight, as native/ops/cuda/base/linear_weight.cpp makes them. In 16 or 32 bits: with LoRA's
 * further columns, rows padded to 64 elements. In 4 bits: codes and scales of each part. In 8 bits: rows padded to 16. Where products are in
 * e4m3, scales of rows and columns are added, and a weight that is not quantised is held only as its two e4m3 copies.
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

/** A 4-bit weight with more parts than this has a list of where each part is (CudaLinear::list_equal_parts). */
const LISTED_PARTS = 4;
const PLACE_BYTES = 72;

function matricesOf({ matrices = 1 }: GpuProduct): number {
  return matrices;
}

/** Bytes of the two e4m3 copies: the weight for the forward pass, and its transpose for the backward pass. */
function expansions({ in: input, out }: GpuProduct): number[] {
  return [input * out, input * out];
}

/**
 * Bytes of the expanded weight that both passes read: in the compute dtype with LoRA's further rows, [out + tail, in], rows padded to 64
 * elements; or the two e4m3 copies.
 */
export function expandedBytes(product: GpuProduct, computeDtype: FloatDtype): number {
  return product.e4m3 ? sum(expansions(product)) : paddedElements(product) * dtypeBytes(computeDtype);
}

/** Whether products need an expanded copy of this weight. */
export function isExpanded(product: GpuProduct, holding: Holding, computeDtype: FloatDtype): boolean {
  return product.quantized || (!product.e4m3 && holding.dtype !== computeDtype);
}

/**
 * Bytes of the buffers in which these products' weights are expanded, one after another: one buffer for each shape (ExpandedPool in
 * native/ops/cuda/base/linear_weight.h). All blocks share the buffers of one.
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
  // While a weight that is held only in e4m3 is loaded, its original values are in memory too. An expert's gate, up and down are loaded
  // one after another.
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

/** The driver maps memory in pages of 2 MiB. Smaller allocations share a page. */
const PAGE = 2 ** 21;

/** Bytes that the driver adds to these allocations by rounding up to pages. */
export function pagePadding(allocations: readonly number[]): number {
  return sum(allocations.map((bytes) => (bytes < PAGE / 2 ? 0 : roundUp(bytes, PAGE) - bytes)));
}
