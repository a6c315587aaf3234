// int8 x int8 -> int32, one implementation for each instruction level; the sums are exact, so all agree.
#pragma once

#include <cstdint>

namespace pipelora::quant {

using Int8Product = void(const std::int8_t* a, std::int64_t lda, std::int64_t m, const std::int8_t* b,
                         std::int64_t ldb, std::int64_t n, std::int64_t k, std::int32_t* c, std::int64_t ldc);

Int8Product int8_product_avx2;
Int8Product int8_product_vnni;

}  // namespace pipelora::quant
