import { dtypeBytes, type FloatDtype } from "../../common/dtype.ts";
import { BLOCK_SIZE, NESTED_BLOCK_SIZE } from "../../common/quantization.ts";
import { type GpuProduct, roundUp, sum, tailColumns } from "./gpu-products.ts";
import type { Holding } from "./held-sizes.ts";

const FLOAT32 = 4;

/**
 * Bytes of each piece of device memory that holds a product's weight, as native/ops/cuda/base/linear_weight.cpp asks for them: 16 or
 * 32 bits with LoRA's tail and rows on lines of 64 elements; 4 bits with their scales a part; 8 bits with rows on lines of 16.
 */
export function heldAllocations(product: GpuProduct, holding: Holding, computeDtype: FloatDtype): number[] {
  const bias = product.bias ? [product.out * dtypeBytes(computeDtype)] : [];
  const { quantization } = holding;
  if (!product.quantized || quantization.method === "none") {
    return [paddedElements(product) * dtypeBytes(holding.dtype), ...bias];
  }
  if (quantization.method === "8bit")
    return [roundUp(product.out, 4) * roundUp(product.in, 16), product.out * FLOAT32, ...bias];
  const scales = product.partRows.map((rows) => {
    const blocks = Math.ceil((rows * product.in) / BLOCK_SIZE);
    return quantization.doubleQuant ? (Math.ceil(blocks / NESTED_BLOCK_SIZE) + 4) * FLOAT32 + blocks : blocks * FLOAT32;
  });
  const codes = product.partRows.map((rows) => roundUp(Math.floor((rows * product.in) / 2) + 1, 16));
  return [sum(codes), ...scales, ...bias];
}

/** Bytes of a product's weight in the compute dtype, with room for LoRA: rows [out + tail], lines of 64 elements. */
export function expandedBytes(product: GpuProduct, computeDtype: FloatDtype): number {
  return paddedElements(product) * dtypeBytes(computeDtype);
}

/** Whether products with this weight run on an expanded copy of it. */
export function isExpanded(product: GpuProduct, holding: Holding, computeDtype: FloatDtype): boolean {
  return product.quantized || holding.dtype !== computeDtype;
}

/**
 * Bytes in which the weights of these products take turns to be expanded: one place a shape (ExpandedPool in
 * native/ops/cuda/base/linear_weight.h). The blocks of a model share the places of one block.
 */
export function expansionBytes(products: readonly GpuProduct[], holding: Holding, computeDtype: FloatDtype): number {
  const shapes = new Map(
    products
      .filter((product) => isExpanded(product, holding, computeDtype))
      .map((product) => [paddedShape(product).join(), expandedBytes(product, computeDtype)]),
  );
  return sum([...shapes.values()]);
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
