#include "ops/cpu/kernels/kernel_parts.h"

#define PIPELORA_TEXT_(x) #x
#define PIPELORA_TEXT(x) PIPELORA_TEXT_(x)

namespace pipelora::PIPELORA_ISA {
Kernels make_kernels() {
  Kernels table{};
  table.isa = PIPELORA_TEXT(PIPELORA_ISA);
  fill_elementwise(table);
  fill_gate(table);
  fill_linear(table);
  fill_norm_rope(table);
  fill_attention(table);
  fill_delta(table);
  fill_heads(table);
  fill_random(table);
  return table;
}
}  // namespace pipelora::PIPELORA_ISA
