// Each file of kernels fills its part of the table.
#pragma once

#include "ops/cpu/kernels/kernels.h"

namespace pipelora::PIPELORA_ISA {
void fill_elementwise(Kernels& table);
void fill_gate(Kernels& table);
void fill_heads(Kernels& table);
void fill_linear(Kernels& table);
void fill_norm_rope(Kernels& table);
void fill_attention(Kernels& table);
void fill_delta(Kernels& table);
void fill_random(Kernels& table);
Kernels make_kernels();
}  // namespace pipelora::PIPELORA_ISA
