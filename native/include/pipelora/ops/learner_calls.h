// What a device does for kinds of adapters beside LoRA on linears (ops.h).
#pragma once

#include "pipelora/ops/sequences.h"
#include "pipelora/core/tensor.h"

namespace pipelora {

/// to[ids[i]] += factor * the rows order[starts[i]], …, order[starts[i + 1] - 1] of `from`, added up in that order. ids are distinct.
struct RowSums {
  Tensor from;  // [T, D]
  const Indices* order = nullptr;
  const Indices* starts = nullptr;
  const Indices* ids = nullptr;
  float factor = 1;
  Tensor to;  // f32
};

/// y += scale * inner Bᵀ.
struct LowRank {
  Tensor inner;  // [T, R] f32
  Tensor bt;     // [R, N] f32
  float scale = 1;
  Tensor y;  // [T, N]
};

/// inner_grad = scale * dy B; grad_bt += scale * innerᵀ dy.
struct LowRankBackward {
  Tensor dy;  // [T, N]
  Tensor inner, bt;
  float scale = 1;
  Tensor inner_grad;  // [T, R] f32, written
  Tensor grad_bt;     // [R, N] f32
};

/// grad += factor * dyᵀ x; x and dy of one dtype.
struct WeightGrad {
  Tensor x;   // [T, K]
  Tensor dy;  // [T, N]
  float factor = 1;
  Tensor grad;  // [N, K] f32
};

/// DoRA's norms |W_c + scale B_c A| of the outputs c, from |W_c|² and A Wᵀ, and gains magnitude / norm.
struct DoraNorms {
  Tensor squares;  // [1, N] f32: |W_c|²
  Tensor product;  // [R, N] f32: A Wᵀ
  Tensor a;        // [R, K] f32, or empty
  Tensor bt;       // [R, N] f32
  float scale = 1;
  Tensor magnitude;     // [1, N] f32
  Tensor norms, gains;  // [1, N] f32, written
  Tensor gram = {};     // [R, R] f32: A Aᵀ, in place of `a`
};

/// y = gains (z - offsets) + offsets + residual, column by column. `change`: what the gains change alone, y = (gains - 1) (z - offsets) + residual.
struct ColumnGains {
  Tensor z;                // [T, N]
  Tensor gains, offsets;   // [1, N] f32
  Tensor residual;         // [T, N] or empty
  Tensor y;                // [T, N], may be residual
  bool change = false;
};

/// grad += factor * the sum over rows of dy (z - offsets) / norms; dz = gains dy, or (gains - 1) dy.
struct ColumnGainsBackward {
  Tensor dy, z;  // [T, N]
  Tensor gains, offsets, norms;
  float factor = 1;
  Tensor grad;  // [1, N] f32
  Tensor dz;    // [T, N], may be dy
  bool change = false;
};

}  // namespace pipelora
