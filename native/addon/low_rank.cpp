#include "addon/low_rank.h"

#include <memory>

#include "addon/background.h"
#include "addon/convert.h"
#include "pipelora/core/error.h"
#include "pipelora/core/low_rank.h"

namespace pipelora::addon {

Napi::Value low_rank(const Napi::CallbackInfo& info) {
  return promised(info, [&]() -> Napi::Value {
    auto weight = std::make_shared<std::vector<float>>(to_float32s(info[0], "weight"));
    const Extents shape = to_extents(info[1]);
    const std::int64_t rank = to_int(info[2], "rank");
    const std::string kind = to_text(info[3], "kind");
    const std::int64_t iterations = to_int(info[4], "iterations"), seed = to_int(info[5], "seed"), threads = to_int(info[6], "threads");
    if (kind != "svd" && kind != "qr") throw Error(kTensorMismatch, "kind: expected svd or qr, got " + kind);
    if (threads < 1 || threads > 1024) throw Error(kTensorMismatch, "threads: expected 1 to 1024, got " + std::to_string(threads));
    if (static_cast<std::int64_t>(weight->size()) != shape.rows * shape.cols)
      throw Error(kTensorMismatch, "weight: expected " + shape_text(shape.rows, shape.cols) + ", got " + std::to_string(weight->size()) + " values");
    auto found = std::make_shared<LowRankFactors>();
    auto* work = new Background(
        info.Env(),
        [=] {
          *found = kind == "qr" ? first_of_qr(weight->data(), shape.rows, shape.cols, rank, static_cast<int>(threads))
                                : largest_singular(weight->data(), shape.rows, shape.cols, rank, iterations, static_cast<std::uint64_t>(seed),
                                                   static_cast<int>(threads));
        },
        [found](Napi::Env env) -> Napi::Value {
          Napi::Object result = Napi::Object::New(env);
          const auto set = [&](const char* name, const std::vector<float>& values) {
            Napi::Float32Array array = Napi::Float32Array::New(env, values.size());
            std::copy(values.begin(), values.end(), array.Data());
            result.Set(name, array);
          };
          set("left", found->left);
          set("values", found->values);
          set("right", found->right);
          return result;
        });
    work->Queue();
    return work->promise();
  });
}

}  // namespace pipelora::addon
