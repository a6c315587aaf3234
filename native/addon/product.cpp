#include "addon/product.h"

#include <algorithm>

#include "addon/convert.h"
#include "ops/cpu/gemm.h"
#include "pipelora/core/error.h"

namespace pipelora::addon {

Napi::Value product(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  try {
    std::vector<float> a = to_float32s(info[0], "a"), b = to_float32s(info[1], "b");
    const std::int64_t inner = to_int(info[2], "inner");
    const auto rows = [inner](const std::vector<float>& matrix, const char* what) {
      const auto size = static_cast<std::int64_t>(matrix.size());
      if (inner < 1 || size == 0 || size % inner != 0)
        throw Error(kTensorMismatch, std::string("expected rows of ") + std::to_string(inner) + " for " + what + ", got " + std::to_string(size));
      return size / inner;
    };
    const std::int64_t m = rows(a, "a"), n = rows(b, "b");
    std::vector<float> c(static_cast<std::size_t>(m * n));
    Gemm().multiply({a.data(), DType::f32, m, inner}, {b.data(), DType::f32, n, inner}, true, {c.data(), DType::f32, m, n});
    Napi::Float32Array out = Napi::Float32Array::New(env, c.size());
    std::copy(c.begin(), c.end(), out.Data());
    return out;
  } catch (...) {
    throw to_js_error(env, std::current_exception());
  }
}

}  // namespace pipelora::addon
