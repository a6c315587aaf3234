#include "quant/int8/int8.h"
#include "quant/int8/int8_kernels.h"
#include "quant/isa.h"

namespace pipelora::quant {

void int8_product(const std::int8_t* a, std::int64_t lda, std::int64_t m, const std::int8_t* b, std::int64_t ldb,
                  std::int64_t n, std::int64_t k, std::int32_t* c, std::int64_t ldc) {
  switch (current_isa()) {
    case Isa::avx512_vnni: return int8_product_vnni(a, lda, m, b, ldb, n, k, c, ldc);
    case Isa::avx512:
    case Isa::avx2: return int8_product_avx2(a, lda, m, b, ldb, n, k, c, ldc);
    case Isa::scalar: break;
  }
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      std::int32_t sum = 0;
      for (std::int64_t l = 0; l < k; ++l) {
        sum += static_cast<std::int32_t>(a[i * lda + l]) * static_cast<std::int32_t>(b[j * ldb + l]);
      }
      c[i * ldc + j] = sum;
    }
  }
}

}  // namespace pipelora::quant
